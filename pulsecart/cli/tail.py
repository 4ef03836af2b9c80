"""`pulsecart tail`."""

import asyncio
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import msgspec

from pulsecart.cli._broker import remote_transport
from pulsecart.cli._settings import usage_error
from pulsecart.errors import SettingsError
from pulsecart.serve.environment import load_settings
from pulsecart.serve.settings import Settings

if TYPE_CHECKING:
    from pulsecart.transports import EmulatorTransport, PubSubTransport
    from pulsecart.transports.pubsub.following import Following

__all__ = ["command"]

SERVICE = "http://127.0.0.1:8000"

SILENT_SECONDS = 60.0
"""Maximum seconds without a byte from the service, which sends a comment every 15 seconds."""

MAX_PROBLEM_BYTES = 65_536


class _Entry(msgspec.Struct):
    message_id: str
    attributes: dict[str, str]
    data: msgspec.Raw


class _Problem(msgspec.Struct):
    type: str
    detail: str


@click.command("tail")
@click.option("--from", "url", metavar="URL", help=f"The service to follow.  [default: {SERVICE}]")
@click.option("--topic", "topics", metavar="TOPIC", multiple=True, help="The topic to follow; can be repeated.")
@click.option("--event-type", metavar="TYPE", help="Print only events of this type.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@click.option("--key", envvar="PULSECART_KEY", show_envvar=True, help="The key to send to the service.")
def command(
    url: str | None, topics: tuple[str, ...], event_type: str | None, count: int | None, key: str | None
) -> None:
    """Print events as they are published, one JSON object a line (NDJSON), in order for each user.

    The lines can be sent: `pulsecart tail | pulsecart send - --to URL` keeps ids, times, numbers and order.

    Without --topic, it follows a service in development on the memory transport or the emulator. It begins with the
    events that the service has kept, at most 16 MB.

    With --topic, it follows topics on the emulator or on Pub/Sub, by a subscription of its own to each, which is
    deleted at the end, and expires after a day if this command was killed. The project and the transport are those of
    the settings, in the environment or in a file .env in the working directory. The credentials need permission to
    create, use and delete subscriptions, such as the role roles/pubsub.editor. An event may come twice.

    \b
    Exit codes:
      0  ended by Ctrl+C or SIGTERM, or after --count events
      1  the service or the broker cannot be followed, or the output is closed
      2  an argument or a setting does not work
    """  # noqa: D301 (\b is click's)
    if topics and url:
        raise click.UsageError("--from names a service to follow, --topic a topic: use one of them")
    output = _Output(count)
    with suppress(KeyboardInterrupt, _Enough):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if topics:
            settings, transport = _broker()
            with suppress(asyncio.CancelledError):  # by SIGTERM
                asyncio.run(_follow_topics(transport, settings, topics, event_type or "", output))
        else:
            _follow_service(url or SERVICE, event_type or "", key, output)


class _Enough(Exception):
    """So many events were printed as were asked for."""


class _Output:
    def __init__(self, count: int | None) -> None:
        if sys.stdout is None:
            raise click.UsageError("standard output is closed")
        self._left = count

    def write(self, events: Iterable[tuple[str, bytes]]) -> None:
        """Print events, each given by its message id and its data."""
        for message_id, data in events:
            try:
                msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                click.echo(f"Message {message_id} is not a JSON object, and is skipped.", err=True)
                continue
            # Outside strings a line break is whitespace, and within strings it is escaped.
            sys.stdout.buffer.write(data.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n")
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    sys.stdout.buffer.flush()
                    raise _Enough
        sys.stdout.buffer.flush()


def _follow_service(url: str, event_type: str, key: str | None, output: _Output) -> None:
    """Print what is on the stream of a service. It raises `ClickException` if the stream ends."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise click.BadParameter(f"{url!r} is not a URL such as {SERVICE}", param_hint="--from")
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise click.BadParameter("a key is printable ASCII characters, without spaces", param_hint="--key")
    address = f"{url.rstrip('/')}/dev/stream"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    # A service in development is on this machine, or in its network, not behind the proxy of a company.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SILENT_SECONDS) as stream:
            for kind, data in _server_sent(stream):
                if kind == b"message":
                    entry = msgspec.json.decode(data, type=_Entry)
                    if event_type in ("", entry.attributes.get("event_type")):
                        output.write([(entry.message_id, bytes(entry.data))])
    except urllib.error.HTTPError as error:
        with error:
            raise click.ClickException(_explain(address, error)) from None
    except BrokenPipeError:  # of the output
        raise
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise click.ClickException(f"{address} does not answer: {reason}. Is `pulsecart serve` running?") from None
    except msgspec.MsgspecError:
        raise click.ClickException(f"{address} does not answer like pulsecart") from None
    raise click.ClickException(f"{address} has ended")


def _server_sent(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the data of each event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    kind, data = b"", []
    for line in lines:
        name, _, value = line.rstrip(b"\n").partition(b": ")
        if name == b"event":
            kind = value
        elif name == b"data":
            data.append(value)
        elif not name and not value:
            yield kind, b"\n".join(data)
            kind, data = b"", []


def _explain(address: str, error: urllib.error.HTTPError) -> str:
    if error.code == 404:
        return (
            f"{address} does not exist: pulsecart streams events only in development, on the memory transport or the "
            "emulator. Otherwise use --topic"
        )
    try:
        detail = msgspec.json.decode(error.read(MAX_PROBLEM_BYTES), type=_Problem).detail
    except (msgspec.MsgspecError, OSError, HTTPException):
        detail = "there is no explanation"
    return f"{address} answers {error.code}: {detail}"


def _broker() -> "tuple[Settings, EmulatorTransport | PubSubTransport]":
    """Return the settings, and the transport that they name."""
    try:
        settings = load_settings()
        return settings, remote_transport(settings)
    except SettingsError as error:
        raise usage_error(error) from None


async def _follow_topics(
    transport: "EmulatorTransport | PubSubTransport",
    settings: Settings,
    topics: tuple[str, ...],
    event_type: str,
    output: _Output,
) -> None:
    """Print what is published to topics, until this is cancelled."""
    from pulsecart.transports.pubsub.following import PULL_SECONDS, Following, FollowingError

    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    names = dict.fromkeys(settings.topics.get(topic, topic) for topic in topics)
    try:
        async with transport.api(timeout=PULL_SECONDS) as api, AsyncExitStack() as stack:
            followed = [await stack.enter_async_context(Following(api, settings.project, name)) for name in names]
            click.echo(f"Following {', '.join(each.topic for each in followed)}", err=True)
            await _first_end(_follow(each, event_type, output) for each in followed)
    except FollowingError as error:
        raise click.ClickException(f"cannot follow {error}") from None


async def _first_end(works: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Run all at the same time until the first ends, and raise what it raises."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(following: "Following", event_type: str, output: _Output) -> None:
    async for messages in following.messages():
        output.write(
            (message.message_id, message.data)
            for message in messages
            if event_type in ("", message.attributes.get("event_type"))
        )
