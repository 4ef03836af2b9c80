"""A producer for code without an event loop: Flask and Django, scripts, and threads."""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from pulsecart.errors import BrokerUnavailable, TransportClosed
from pulsecart.events.base import Event
from pulsecart.events.catalog import Catalog
from pulsecart.guard import guarded
from pulsecart.limits import Limits
from pulsecart.message import Prepared, Receipt, SizeLimit
from pulsecart.ordering import Ordering
from pulsecart.ports import Clock, IdFactory, Observer, Transport
from pulsecart.producer import Producer

__all__ = ["SyncProducer"]

CLOSE_SECONDS = 15.0
"""Maximum seconds that `close` takes. Transports wait up to 7 seconds for events in flight, and 2 to close."""

_DEFAULT = Limits()


class _Loop(asyncio.SelectorEventLoop):
    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 (as in the base)
        """Do not wait for the threads that resolve names: one may hang, and Python 3.12 cannot do it at exit."""


class SyncProducer:
    """Publishes events from code without an event loop. Any number of threads can share an instance.

        with SyncProducer(transport) as producer:
            receipt = producer.publish(OrderPlaced(user_id="user-1", order_id="order-1", payload={}))

    It is a `Producer` on an event loop of its own, in a daemon thread, which does not keep the process alive. The
    transport is opened when this is made, which raises the transport's errors, and closed by `close`. Without `with`,
    it is closed when the process exits; events that other threads are publishing then are waited for, as in `close`.

    A thread does not survive a fork: make a SyncProducer in each process, for example when it is first used.
    """

    def __init__(  # noqa: PLR0913 (the options of Producer)
        self,
        transport: Transport,
        *,
        catalog: Catalog | None = None,
        clock: Clock | None = None,
        new_event_id: IdFactory | None = None,
        ordering: Mapping[str, Ordering] | None = None,
        size_limit: SizeLimit | None = None,
        limits: Limits = _DEFAULT,
        observer: Observer | None = None,
    ) -> None:
        """Open a transport, which must not be open yet. The options are those of `Producer`.

        `clock`, `new_event_id`, `ordering` and `observer` are called from all threads that publish.
        """
        options: dict[str, Any] = {
            "catalog": catalog,
            "clock": clock,
            "new_event_id": new_event_id,
            "ordering": ordering,
            "size_limit": size_limit,
            "observer": observer,
        }
        self._transport = guarded(transport, limits=limits)
        options = {name: value for name, value in options.items() if value is not None}
        self._producer = Producer(self._transport, **options)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._opened: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._stop: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        threading.Thread(target=self._run, name="pulsecart", daemon=True).start()
        try:
            self._loop = self._opened.result()
        except BaseException:
            self._end()  # after Ctrl-C the transport may still open
            raise
        atexit.register(self.close)

    def publish(self, event: Event | Prepared) -> Receipt:
        """Publish an event, and return when the broker has confirmed it.

        It takes as long as the transport allows, usually at most 10 seconds. Raises an `EventError` if the event is
        invalid, a `PublishError` if it could not be published, and `RuntimeError` after a fork.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this SyncProducer was opened in process {self._process}, and its thread does not exist in process "
                f"{os.getpid()}: after a fork, open one in each process, for example when it is first used, or in "
                "the hook post_fork of gunicorn, @postfork of uWSGI, or the signal worker_process_init of Celery"
            )
        prepared = event if isinstance(event, Prepared) else self._producer.prepare(event)
        with self._lock:  # what is submitted before `close` is published
            if self._stop.done():
                raise TransportClosed("the SyncProducer is closed", message=prepared.message)
            publishing = asyncio.run_coroutine_threadsafe(self._producer.publish(prepared), self._loop)
        try:
            return publishing.result()
        except concurrent.futures.CancelledError:
            detail = "the SyncProducer was closed before the broker confirmed"
            raise BrokerUnavailable(detail, message=prepared.message) from None
        finally:
            publishing.cancel()  # if this thread was interrupted; otherwise it is done

    def close(self) -> None:
        """Refuse further events, wait for those in flight, and close the transport. Closing it twice is not an error.

        Raises `TimeoutError` if the transport does not close within 15 seconds, and its errors, unless it is guarded:
        see `pulsecart.guard`. After a fork it does nothing: what is open belongs to the other process.
        """
        if os.getpid() != self._process:
            return
        atexit.unregister(self.close)
        self._end()
        try:
            self._ended.result(CLOSE_SECONDS)
        except TimeoutError:
            if self._ended.done():
                raise  # it is the transport's
            raise TimeoutError(f"the transport did not close within {CLOSE_SECONDS:g} s") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def _end(self) -> None:
        with self._lock:
            if not self._stop.done():
                self._stop.set_result(None)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001 (it is raised in the thread that opens or closes this)
            self._end()
            (self._ended if self._opened.done() else self._opened).set_exception(error)
        else:
            self._ended.set_result(None)

    async def _live(self) -> None:
        """Keep the transport open until the end."""
        async with self._transport:
            self._opened.set_result(asyncio.get_running_loop())
            await asyncio.wrap_future(self._stop)
