"""Run the tests' OpenTelemetry collector: it prints its address and, once stopped, how much it received."""

import json
import signal
import threading

from tests.collector import collector


def main() -> None:
    """Serve until stopped."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with collector("grpc") as collects:
        print(collects.endpoint, flush=True)
        stopped.wait()
        print(json.dumps({"spans": len(collects.spans), "metrics": len(collects.metrics)}), flush=True)


if __name__ == "__main__":
    main()
