"""Runs several workers, and says why one has died: uvicorn's own supervisor only says that it did, at the level info.

This depends on the interface of uvicorn's supervisor, which is not documented: `Multiprocess.keep_subprocess_alive`
replaces the items of `processes` that have died, whose `process` is a `multiprocessing.Process`. Older releases want
the target of the workers, too.
"""

import inspect
import logging
import signal
from multiprocessing.process import BaseProcess
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

__all__ = ["Supervisor"]

_log = logging.getLogger("pulsecart")


class Supervisor(Multiprocess):
    """Keeps the workers of a configuration running."""

    @classmethod
    def of(cls, config: uvicorn.Config) -> "Supervisor":
        """Bind the socket, and return a supervisor of the workers that share it."""
        options: dict[str, Any] = {"target": uvicorn.Server(config).run, "sockets": [config.bind_socket()]}
        known = inspect.signature(cls).parameters
        return cls(config, **{name: value for name, value in options.items() if name in known})

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died, and log why they did."""
        before = list(self.processes)
        super().keep_subprocess_alive()
        for worker in before:
            if worker not in self.processes:
                _log.warning("worker %s has died and was replaced: %s", worker.pid, _reason(worker.process))


def _reason(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code >= 0:
        return f"it ended with the exit status {code}"
    number = -code
    name = signal.Signals(number).name if number in {known.value for known in signal.Signals} else f"signal {number}"
    if number == signal.SIGKILL:
        return (
            f"it was killed by {name}: by the kernel if memory ran out, or by its supervisor if it did not answer for "
            "seconds"
        )
    return f"it was killed by {name}"
