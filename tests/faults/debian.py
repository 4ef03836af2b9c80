"""Programs and libraries that come from Debian packages. `.ci/run` installs them."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template

import pytest

START_SECONDS = 30


def installed(pattern: str, package: str) -> Path:
    """Return the path of a package's file. Skip the test if it is missing; in CI, fail."""
    found = next(Path("/usr").glob(pattern), None)
    if found is None:
        assert "CI" not in os.environ, f"{package} is not installed"
        pytest.skip(f"needs the Debian package {package}")
    return found


def shifted_clock(folder: Path) -> dict[str, str]:
    """Return the variables that shift a Python's wall clock, and not its monotonic clock, as `shift_clock` says."""
    library = installed("lib/*/faketime/libfaketimeMT.so.1", "libfaketime")
    # libfaketime breaks clock_nanosleep(), which time.sleep() uses.
    (folder / "sitecustomize.py").write_text(
        "import select, time; time.sleep = lambda seconds: select.select([], [], [], seconds)"
    )
    shift_clock(folder, "+0")
    return {
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def shift_clock(folder: Path, shift: str) -> None:
    """Shift the clock, by "+2h" for example, within a second."""
    (folder / "new").write_text(f"{shift}\n")
    (folder / "new").rename(folder / "clock")


def own_hosts(file: Path) -> dict[str, str]:
    """Return the variables that make a process look up names in `file`, which is like /etc/hosts."""
    library = installed("lib/*/libnss_wrapper.so", "libnss-wrapper")
    # gRPC's own resolver reads /etc/hosts and asks DNS servers itself; its other one asks the C library.
    return {"LD_PRELOAD": str(library), "NSS_WRAPPER_HOSTS": str(file), "GRPC_DNS_RESOLVER": "native"}


@contextmanager
def nginx(folder: Path, broker: str, wire: str) -> Iterator[str]:
    """Run an nginx in front of a broker, and return its address.

    It closes each connection after ten answers, or 0.1 s without a request. While there is a file named 302, 429 or 502
    in the folder, all answers are pages with that status.
    """
    program = installed("sbin/nginx", "nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    http2, forward = (" http2", "grpc_pass grpc://broker;") if wire == "grpc" else ("", "proxy_pass http://broker;")
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.substitute(folder=folder, port=port, http2=http2, broker=broker, forward=forward))
    with subprocess.Popen([program, "-c", file, "-e", folder / "error.log"]) as process:
        try:
            end = time.monotonic() + START_SECONDS
            while not _listens(port):
                assert process.poll() is None, f"nginx has ended:\n{(folder / 'error.log').read_text()}"
                assert time.monotonic() < end, "nginx did not start in time"
                time.sleep(0.02)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


CONFIGURATION = Template("""
daemon off;
master_process off;
pid $folder/pid;
events {}
http {
    access_log off;
    client_body_temp_path $folder/client;
    proxy_temp_path $folder/proxy;
    fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi;
    scgi_temp_path $folder/scgi;
    default_type text/html;
    upstream broker {
        server $broker;
        keepalive 64;
    }
    server {
        listen 127.0.0.1:$port$http2;
        keepalive_requests 10;
        keepalive_timeout 100ms;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location / {
            if (-f $folder/502) { return 502 "<html><h1>502 Bad Gateway</h1></html>"; }
            if (-f $folder/302) { return 302 https://login.internal/; }
            if (-f $folder/429) {
                add_header Retry-After 1 always;
                return 429 "slow down";
            }
            $forward
        }
    }
}
""")
