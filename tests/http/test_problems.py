"""Problem details: every error has one."""

import httpx
import pytest

from pulsecart import REST_LIMIT, Message, errors
from pulsecart.app import create_app
from pulsecart.http.problems import problem_of
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport
from tests.http.client import problem

pytestmark = pytest.mark.anyio

MESSAGE = Message(topic="t", data=b"{}", attributes={"event_type": "order.placed", "event_id": "e1"})
ERRORS = [
    cls
    for cls in map(vars(errors).__getitem__, errors.__all__)
    if issubclass(cls, errors.EventError | errors.PublishError)
]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_class_has_a_problem(cls):
    """Each error that an event can raise has a status and type, and is retryable only if the status is 5xx."""
    error = cls(MESSAGE, 2, REST_LIMIT) if cls is errors.MessageTooLarge else cls("text")
    document = problem_of(error)
    assert 400 <= document.status < 600
    assert document.type
    assert document.title
    assert document.detail == ("the service is shutting down" if cls is errors.TransportClosed else str(error))
    assert document.retryable == cls.retryable == (document.status >= 500)


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [
        ("GET", "/", 404, "not-found"),
        ("POST", "/events", 404, "not-found"),
        ("POST", "/events/ingest/", 404, "not-found"),
        ("POST", "/events/ingest%0A", 404, "not-found"),
        ("GET", "/events/ingest%0A", 404, "not-found"),
        ("GET", "/health%0A", 404, "not-found"),
        ("GET", "/schemas/order.placed%0A", 404, "not-found"),
        ("GET", "/events/ingest", 405, "method-not-allowed"),
        ("PUT", "/dev/messages", 405, "method-not-allowed"),
        ("POST", "/health", 405, "method-not-allowed"),
    ],
)
async def test_unknown_path_or_wrong_method_is_a_problem(client, method, path, status, type_):
    """404 and 405 are problems that name the route for events."""
    response = await client.request(method, path)
    assert "POST /events/ingest" in problem(response, status, type_)["detail"]
    if status == 405:
        assert response.headers["allow"]


async def test_unexpected_exception_of_another_route_is_500():
    """An unexpected exception of a route other than ingest is answered 500."""

    class Defective(MemoryTransport):
        async def check(self, topics):
            raise ZeroDivisionError

    app = create_app(Settings(transport="memory"), transport=Defective())
    asgi = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=asgi, base_url="http://test") as client:
        problem(await client.get("/readyz"), 500, "internal-error")
