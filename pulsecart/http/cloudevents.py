"""`POST /events/cloudevents`: CloudEvents over HTTP, in binary, structured and batched mode."""

from starlette.responses import Response

from pulsecart.errors import EventError
from pulsecart.http.auth import require_credit
from pulsecart.http.batch import Arrays
from pulsecart.http.body import Bodies
from pulsecart.http.endpoint import Request, media_type, unsupported_type
from pulsecart.http.formats.cloudevents import CloudEvent, from_headers, from_json
from pulsecart.http.ingest import Ingest
from pulsecart.message import Prepared
from pulsecart.producer import Producer

__all__ = ["CLOUDEVENTS", "CloudEvents"]

CLOUDEVENTS = "/events/cloudevents"

_STRUCTURED = "application/cloudevents"
_BATCHED = "application/cloudevents-batch"


class CloudEvents:
    """Publishes CloudEvents. Content-Type alone decides the mode (HTTP binding, section 3)."""

    def __init__(self, producer: Producer, bodies: Bodies, ingest: Ingest, arrays: Arrays) -> None:
        self._producer = producer
        self._bodies = bodies
        self._ingest = ingest
        self._arrays = arrays

    async def __call__(self, request: Request) -> Response:
        """Publish the events of a request."""
        kind = media_type(request.content_type)
        if kind == f"{_BATCHED}+json":
            return await self._arrays.publish(
                request,
                lambda element, index: self._prepare(request, from_json(element), index),
                may_be_empty=True,
            )
        if not kind or (kind.startswith(_STRUCTURED) and kind != f"{_STRUCTURED}+json"):
            accepted = (f"{_STRUCTURED}+json", f"{_BATCHED}+json", "application/json")
            raise unsupported_type(request.content_type, *accepted)
        coding = request.coding
        require_credit(request.source)
        body = await self._bodies.read(request.declared, request.receive, coding=coding)
        is_structured = kind.startswith(_STRUCTURED)
        event = from_json(body) if is_structured else from_headers(request.scope["headers"], kind, body)
        return await self._ingest.publish(request, self._prepare(request, event))

    def _prepare(self, request: Request, event: CloudEvent, index: int = 0) -> Prepared:
        try:
            prepared = request.prepare(self._producer, event.document, index, event.attributes)
        except EventError as error:
            raise event.explain(error) from None
        event.require_no_faults()
        return prepared
