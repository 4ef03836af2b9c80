"""Starts gcloud's Pub/Sub emulator."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["EmulatorMissing", "emulator"]

COMMAND = ["gcloud", "beta", "emulators", "pubsub", "start", "--project=pulsecart-dev"]

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class EmulatorMissing(Exception):
    """There is no emulator on this machine."""


@contextmanager
def emulator() -> Iterator[str]:
    """Give the host:port of the emulator at PUBSUB_EMULATOR_HOST, or of one that runs until the end of the block.

    Raises `EmulatorMissing` if gcloud is not installed, and `RuntimeError` with its output if it does not start.
    """
    if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield host
        return
    gcloud = shutil.which(COMMAND[0])
    if gcloud is None:
        raise EmulatorMissing("install gcloud with its component pubsub-emulator, or set PUBSUB_EMULATOR_HOST")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen(  # noqa: S603 (the user's own gcloud)
            [gcloud, *COMMAND[1:], f"--host-port={host}", f"--data-dir={folder}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # gcloud starts java, which has to be stopped with it
        )
        try:
            if not _listens(port, process):
                log.seek(0)
                raise RuntimeError(f"the Pub/Sub emulator did not start within {START_SECONDS:g} s:\n{log.read()}")
            yield host
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(STOP_SECONDS)


def _listens(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until a port answers. Return False if its process ends first, or after `START_SECONDS`."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.1)
    return False
