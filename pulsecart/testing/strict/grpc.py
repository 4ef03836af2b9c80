"""gRPC, with Google's own message classes. Importing this module loads grpc and google."""

from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from pulsecart.testing.strict.faults import Fault
from pulsecart.testing.strict.server import PublishRequest, ReceivedMessage

if TYPE_CHECKING:
    from pulsecart.testing.strict.server import StrictPubsub

try:
    import grpc
    import grpc.aio
    from google.pubsub_v1 import types
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the gRPC wire of strict_pubsub needs google-cloud-pubsub: pip install google-cloud-pubsub", name=error.name
    ) from error

__all__ = ["GrpcServer"]

MAX_REQUEST_BYTES = 10_000_000

# Without proto-plus wrappers, which would make this server the slowest part of a benchmark.
_Request = types.PublishRequest.pb()
_Response = types.PublishResponse.pb()


class GrpcServer:
    """Starts on creation. `started` is the task that ends when it serves."""

    def __init__(self, server: "StrictPubsub", port: int) -> None:
        self._server = server
        options = [
            ("grpc.max_receive_message_length", 4 * MAX_REQUEST_BYTES),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error
        ]
        self._grpc = grpc.aio.server(options=options)
        methods = {
            "Publish": (self._publish, _Request.FromString, _Response.SerializeToString),
            "GetTopic": (self._get_topic, types.GetTopicRequest.deserialize, types.Topic.serialize),
            "CreateTopic": (self._create_topic, types.Topic.deserialize, types.Topic.serialize),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(method, request_deserializer=read, response_serializer=write)
            for name, (method, read, write) in methods.items()
        }
        self._grpc.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", handlers)]
        )
        if certificate := server.certificate:
            credentials = grpc.ssl_server_credentials([(certificate.key, certificate.chain)])
            self.host = f"localhost:{self._grpc.add_secure_port(f'localhost:{port}', credentials)}"
            self.plain_port = self._grpc.add_insecure_port("127.0.0.1:0")
        else:
            self.plain_port = self._grpc.add_insecure_port(f"127.0.0.1:{port}")
            self.host = f"127.0.0.1:{self.plain_port}"
        self.started = server.spawn(self._grpc.start())

    async def aclose(self) -> None:
        """End all calls."""
        await self.started  # otherwise its ports stay open
        await self._grpc.stop(None)

    async def _publish(self, request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        if request.ByteSize() > MAX_REQUEST_BYTES:
            size, limit = request.ByteSize(), MAX_REQUEST_BYTES
            text = f"The value for request_size is too large. You passed {size} in the request, but the maximum value"
            await _fail(context, Fault("INVALID_ARGUMENT", f"{text} is {limit}."))
        headers = {name: str(value) for name, value in context.invocation_metadata() or ()}
        messages = [
            ReceivedMessage(message.data, dict(message.attributes), message.ordering_key)
            for message in request.messages
        ]
        peer, connection = self._connection(context)
        try:
            return _Response(
                message_ids=await self._server.publish(
                    PublishRequest(request.topic, messages, headers, peer, connection, "grpc")
                )
            )
        except Fault as fault:
            await _fail(context, fault)

    async def _get_topic(
        self, request: types.GetTopicRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> types.Topic:
        try:
            await self._server.find_topic(request.topic, self._connection(context)[1])
        except Fault as fault:
            await _fail(context, fault)
        return types.Topic(name=request.topic)

    async def _create_topic(self, request: types.Topic, context: "grpc.aio.ServicerContext[Any, Any]") -> types.Topic:
        try:
            await self._server.create_topic(request.name, self._connection(context)[1])
        except Fault as fault:
            await _fail(context, fault)
        return request

    def _connection(self, context: "grpc.aio.ServicerContext[Any, Any]") -> tuple[str, int]:
        """Return the client's address, and the number of its connection."""
        peer = unquote(context.peer()).partition(":")[2]
        if peer not in self._server.numbers:
            self._server.numbers[peer] = self._server.new_connection()
        return peer, self._server.numbers[peer]


async def _fail(context: "grpc.aio.ServicerContext[Any, Any]", fault: Fault) -> NoReturn:
    await context.abort(grpc.StatusCode[fault.status], fault.message)
    raise AssertionError("abort raises")  # pragma: no cover
