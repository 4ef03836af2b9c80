"""Runs the service on uvicorn.

This module uses only uvicorn's documented options. What depends on its interfaces is in `pulsecart.serve.protocol` and
`pulsecart.serve.supervisor`.
"""

import asyncio
import gc
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette

from pulsecart.serve.protocol import ConnectionLimits, HttpProtocol
from pulsecart.serve.settings import Settings
from pulsecart.serve.supervisor import Supervisor
from pulsecart.serve.wiring import create_app
from pulsecart.telemetry import logs

__all__ = ["application", "run"]

OTHER_FILES = 200
"""The number of open files that a process needs in addition to its connections."""

EXIT_SECONDS = 3.0
"""Maximum seconds from the end of the application to that of the process. Python itself waits for all threads."""

GRACE_SECONDS = 8
"""Maximum seconds for requests to finish after the signal to stop."""


def run(settings: Settings) -> None:
    """Serve until a signal arrives. Workers and the application read the settings from the environment."""
    logs.capture()
    # After a graceful shutdown uvicorn raises the signal again, whose default handler would end with a failure status.
    signal.signal(signal.SIGTERM, _exit)
    _allow_open_files(settings.max_connections + OTHER_FILES)
    options: dict[str, Any] = {
        "app": "pulsecart.serve.server:application",
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "http": partial(HttpProtocol, limits=ConnectionLimits(max_connections=settings.max_connections)),
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "log_config": logs.standard_logging(settings.log_level, settings.project),
        "timeout_graceful_shutdown": GRACE_SECONDS,
    }
    if settings.workers > 1:
        Supervisor.of(uvicorn.Config(**options)).run()
    else:
        uvicorn.run(**options)


def _exit(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # another signal must not interrupt the exit
    sys.exit(0)


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files as far as the system allows. Workers inherit it."""
    with suppress(ImportError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if 0 <= soft < wanted:  # -1 means no limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stop_with_supervisor() -> None:
    """Stop this worker when its supervisor dies, since no other process would."""
    if supervisor := multiprocessing.parent_process():
        loop, sentinel = asyncio.get_running_loop(), supervisor.sentinel

        def stop() -> None:
            loop.remove_reader(sentinel)
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(sentinel, stop)


def _exit_in_time() -> None:
    """End the process after `EXIT_SECONDS`, although a thread of a transport may still be waiting for something."""

    def end() -> None:
        message = f"The process ends although threads are still running: {', '.join(_threads())}"
        with suppress(OSError):  # the log has been finished, and its pipe may be full
            if select.select([], [2], [], 0)[1]:
                os.write(2, b"%b\n" % msgspec.json.encode({"severity": "WARNING", "message": message}))
        os._exit(0)

    timer = threading.Timer(EXIT_SECONDS, end)
    timer.daemon = True
    timer.start()


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]


def application() -> Starlette:
    """Create the application for a server process."""
    logs.capture()
    app = create_app()
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def for_a_process(app: Starlette) -> AsyncIterator[Any]:
        try:
            async with lifespan(app) as state:
                _stop_with_supervisor()
                # Exclude everything loaded at startup from garbage collection: scanning it repeatedly paused requests
                # for tens of milliseconds. Measured p99 under full load: 78 ms before, 46 ms after.
                gc.collect()
                gc.freeze()
                gc.set_threshold(10_000, 20, 20)
                yield state
            _exit_in_time()
        finally:
            logs.finish()  # a worker ends by a signal, which skips exit handlers

    app.router.lifespan_context = for_a_process
    return app
