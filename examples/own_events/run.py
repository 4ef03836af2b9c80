"""Serve your own event types. Run in this folder: python run.py.

It does what you would do manually in two terminals:

    PULSECART_EVENTS=myshop.events pulsecart serve
    curl localhost:8000/events/ingest -H 'Content-Type: application/json' -d '…'
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

SHIPPED = {
    "event_type": "order.shipped",
    "user_id": "user-1",
    "order_id": "order-1",
    "payload": {
        "carrier": "bike",
        "ships_at": "2026-01-31T12:00:00+01:00",
        "parcels": [{"weight_kg": 1.20, "contents": ["a lamp"]}],
    },
}
WRONG = {**SHIPPED, "payload": {"carrier": "train", "ships_at": "soon", "parcels": [{"weight_kg": "1.20"}]}}


def call(url: str, event: dict[str, Any] | None = None) -> Any:
    body = None if event is None else json.dumps(event).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (our own address)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def main() -> None:
    command = [sys.executable, "-m", "pulsecart", "serve", "--transport", "memory", "--port", "0"]
    service = subprocess.Popen(  # noqa: S603 (our own command)
        command, env=os.environ | {"PULSECART_EVENTS": "myshop.events"}, stderr=subprocess.PIPE, text=True
    )
    assert service.stderr is not None
    try:
        lines = (json.loads(line)["message"] for line in service.stderr)
        url = next(line.split()[3] for line in lines if line.startswith("Uvicorn running on"))

        accepted = call(f"{url}/events/ingest", SHIPPED)
        print("accepted", accepted["event_id"])

        refused = call(f"{url}/events/ingest", WRONG)
        for fault in refused["errors"]:
            print("rejected ", fault["pointer"], fault["message"])
        assert len(refused["errors"]) == 4

        (message,) = call(f"{url}/dev/messages?topic=myshop.shipping")["messages"]
        print("published", json.dumps(message["data"]))
        assert message["data"]["payload"]["carrier"] == "bike"
    finally:
        service.terminate()
        service.communicate(timeout=30)


if __name__ == "__main__":
    main()
