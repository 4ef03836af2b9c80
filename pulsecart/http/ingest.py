"""`POST /events/ingest`: one event per request, answered when the broker has confirmed it.

`POST /events/validate` says how an event would be answered, and publishes nothing.
"""

import msgspec
from starlette.responses import Response

from pulsecart.errors import EventError
from pulsecart.http.auth import name_of, require_credit
from pulsecart.http.body import Bodies
from pulsecart.http.endpoint import Request, require_json
from pulsecart.http.problems import problem_of
from pulsecart.message import Prepared, Receipt
from pulsecart.producer import Producer
from pulsecart.telemetry.logs import EventLog

__all__ = ["INGEST", "VALIDATE", "Ingest", "Validate"]


INGEST = "/events/ingest"
VALIDATE = "/events/validate"


class Ingest:
    """Publishes single events, and logs them."""

    def __init__(self, producer: Producer, log: EventLog, bodies: Bodies) -> None:
        self._producer = producer
        self._log = log
        self._bodies = bodies

    async def __call__(self, request: Request) -> Response:
        """Publish the event of a request."""
        require_json(request.content_type)
        coding = request.coding
        require_credit(request.source)
        body = await self._bodies.read(request.declared, request.receive, coding=coding)
        prepared, body = request.prepare(self._producer, body), b""  # free it while waiting for the broker
        return await self.publish(request, prepared)

    async def publish(self, request: Request, prepared: Prepared) -> Response:
        """Publish a prepared event."""
        self._bodies.hold(prepared.size)
        try:
            receipt = await self._producer.publish(prepared)
        finally:
            self._bodies.release(prepared.size)
        self._log.published(receipt, request.seconds, name_of(request.source))
        return _accepted(receipt)


class Validate:
    """Gives the verdict of `Ingest`, and publishes nothing."""

    def __init__(self, producer: Producer, bodies: Bodies) -> None:
        self._producer = producer
        self._bodies = bodies

    async def __call__(self, request: Request) -> Response:
        """Validate the event of a request."""
        require_json(request.content_type)
        coding = request.coding
        require_credit(request.source)
        body = await self._bodies.read(request.declared, request.receive, coding=coding)
        try:
            request.prepare(self._producer, body)
        except EventError as error:
            return problem_of(error).response()  # it is not logged as an event that was refused
        return Response(b'{"status":"valid"}', media_type="application/json")


def _accepted(receipt: Receipt) -> Response:
    answer = {
        "status": "accepted",
        "event_id": receipt.event_id,
        "message_id": receipt.message_id,
        "trace_id": receipt.trace_id,
    }
    return Response(msgspec.json.encode(answer), 202, media_type="application/json")
