"""Publish from Flask, which has no event loop. Run: python examples/flask_shop.py.

It calls the application as a test would. A server runs it with `gunicorn 'flask_shop:create_app()'`: each worker
process calls the factory, so each has a SyncProducer of its own, whose thread would not survive a fork. The threads of
a worker share it.
"""

from concurrent.futures import ThreadPoolExecutor

from flask import Flask, request
from flask.typing import ResponseReturnValue

from pulsecart import PublishError, SyncProducer, Transport
from pulsecart.events import OrderPlaced
from pulsecart.transports import MemoryTransport


def create_app(transport: Transport | None = None) -> Flask:
    app = Flask(__name__)
    # In production use another transport; nothing else changes. It is closed when the process exits.
    producer = SyncProducer(transport or MemoryTransport())

    @app.post("/orders/<order_id>")
    def place_order(order_id: str) -> ResponseReturnValue:
        event = OrderPlaced(
            event_id=f"order.placed:{order_id}",  # so that consumers recognize a retry
            user_id=request.json["user_id"],
            order_id=order_id,
            payload={"items": request.json["items"]},
        )
        try:
            receipt = producer.publish(event)
        except PublishError as error:
            return {"error": str(error)}, 503 if error.retryable else 422
        return {"event_id": receipt.event_id}, 201

    return app


def main() -> None:
    transport = MemoryTransport()
    app = create_app(transport)

    def order(number: int) -> int:
        # Each thread has a client of its own, as each request has a thread.
        answer = app.test_client().post(f"/orders/{number}", json={"user_id": "user-1", "items": ["lamp"]})
        return answer.status_code

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(order, range(20))) == {201}
    print(f"published {len(transport.messages)} events from 4 threads")
    assert {message.attributes["event_id"] for message in transport.messages} == {
        f"order.placed:{number}" for number in range(20)
    }


if __name__ == "__main__":
    main()
