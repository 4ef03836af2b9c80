"""The settings: what each is called, what it does, its default and its values, and what contradicts what."""

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any, Literal

from attrs import Factory, evolve, field, frozen

from pulsecart.errors import SettingsError
from pulsecart.events import Catalog, load_catalog
from pulsecart.events.commerce import USER_ACTIONS
from pulsecart.limits import Batching, Limits
from pulsecart.message import GRPC_LIMIT, MAX_MESSAGE_BYTES, REST_LIMIT, SizeLimit
from pulsecart.ordering import Ordering, by_user, in_shards, unordered
from pulsecart.serve import values
from pulsecart.serve.hosts import is_listed, is_loopback
from pulsecart.suggest import nearest
from pulsecart.transports.pubsub import DEFAULT_CONNECTIONS, DEFAULT_ENDPOINT
from pulsecart.transports.registry import BUILT_IN

__all__ = ["ENVIRONMENTS", "Settings"]

ENVIRONMENTS = ("dev", "staging", "prod")

_DEV_PROJECT = "pulsecart-dev"

# The groups of `pulsecart serve --help`, which shows settings in the order in which they are defined.
_WHAT = "What to serve"
_WHERE = "Where events go"
_ACCESS = "Who may send events"
_LIMITS = "Limits"
_BATCHING = "Ordering and batching"
_TELEMETRY = "Telemetry and logs"
_DEVELOPMENT = "Development"


def _setting(variable: str, group: str, metavar: str, help: str, *, shown: str = "", **options: Any) -> Any:
    """Define a setting. `shown` is its default in words; options are attrs' own, and the parser of its text."""
    default = options.get("default")
    metadata = {
        "variable": variable,
        "group": group,
        "metavar": metavar,
        "help": help,
        "parse": options.pop("parse", str),
        "default": shown or (f"{default:g}" if isinstance(default, float) else str(default)),
    }
    return field(metadata=metadata, **options)


def _choice(variable: str, group: str, allowed: tuple[str, ...], help: str, **options: Any) -> Any:
    """Define a setting that is one of a few words."""
    check, converter = values.one_of(*allowed), values.word
    return _setting(variable, group, f"[{'|'.join(allowed)}]", help, validator=check, converter=converter, **options)


def _number(variable: str, group: str, metavar: str, help: str, bounds: tuple[float, float], **options: Any) -> Any:
    """Define a setting that is a number in a range."""
    check = values.between(*bounds)
    return _setting(variable, group, metavar, help, parse=values.number, validator=check, **options)


@frozen(kw_only=True)
class Settings:
    """What the service needs to know. Raises `SettingsError` for values that are wrong or contradict each other.

    `transport` may be empty for an application that is given one.
    """

    environment: str = _choice(
        "ENVIRONMENT", _WHAT, ENVIRONMENTS, "Where it runs: dev, staging or prod.", default="dev"
    )
    host: str = _setting(
        "PULSECART_HOST",
        _WHAT,
        "ADDRESS",
        "The address to listen on.",
        default="127.0.0.1",
        shown="127.0.0.1; on Cloud Run and Kubernetes 0.0.0.0",
    )
    port: int = _number("PORT", _WHAT, "NUMBER", "The port to listen on; 0 takes a free one.", (0, 65535), default=8000)
    workers: int = _number(
        "PULSECART_WORKERS", _WHAT, "NUMBER", "The number of processes that serve.", (1, 64), default=1
    )
    events: tuple[str, ...] = _setting(
        "PULSECART_EVENTS",
        _WHAT,
        "MODULES",
        "Modules with event classes of your own, separated by commas.",
        default=(),
        parse=values.names,
        converter=values.split,
        shown="none",
    )
    commerce_events: str = _choice(
        "PULSECART_COMMERCE_EVENTS",
        _WHAT,
        ("true", "false"),
        "Whether the built-in event types are served: true or false.",
        default="true",
    )
    docs: str = _choice(
        "PULSECART_DOCS",
        _WHAT,
        ("true", "false"),
        "Whether /docs, /schemas, /openapi.json and /asyncapi.json are served: true or false.",
        default=Factory(lambda self: "true" if self.environment == "dev" else "false", takes_self=True),
        shown="true in development, else false",
    )
    drain_delay: float = _number(
        "PULSECART_DRAIN_DELAY",
        _WHAT,
        "SECONDS",
        "How long to keep taking events after SIGTERM, with /readyz at 503; 5 is good on Kubernetes.",
        (0.0, 300.0),
        default=0.0,
    )
    transport: str = _setting(
        "PULSECART_TRANSPORT",
        _WHERE,
        f"[{'|'.join(BUILT_IN)}|NAME|MODULE:FACTORY]",
        "Where events go: memory, emulator, pubsub, another transport that is installed, or a factory in a module.",
        default="",
        validator=values.transport,
        shown="in development, emulator if PUBSUB_EMULATOR_HOST is set, else memory on a developer's machine",
    )
    transport_options: Mapping[str, str] = _setting(
        "PULSECART_TRANSPORT_OPTIONS",
        _WHERE,
        "NAME=VALUE,...",
        "Options of a transport that is not one of pulsecart's own, separated by commas.",
        default={},
        parse=values.parse_options,
        validator=values.options,
        shown="none",
    )
    project: str = _setting(
        "GCP_PROJECT_ID",
        _WHERE,
        "PROJECT",
        "The Google Cloud project of the topics.",
        default=_DEV_PROJECT,
        validator=values.project,
    )
    topics: Mapping[str, str] = _setting(
        "PULSECART_TOPICS",
        _WHERE,
        "TOPIC=NAME,...",
        "What topics are called in the project, where that is not the catalog's name: topic=name, separated by commas.",
        default={},
        parse=values.parse_topics,
        validator=values.topics,
        shown="the catalog's names",
    )
    endpoint: str = _setting(
        "PULSECART_ENDPOINT",
        _WHERE,
        "HOST:PORT",
        "Pub/Sub's endpoint. For order, name a region's, such as us-central1-pubsub.googleapis.com:443.",
        default=DEFAULT_ENDPOINT,
        validator=values.address,
    )
    wire: Literal["rest", "grpc"] = _choice(
        "PULSECART_WIRE",
        _WHERE,
        ("rest", "grpc"),
        "How requests get to Pub/Sub: rest, or grpc for messages over 7,340,032 bytes and networks that need it.",
        default="rest",
    )
    connections: int = _number(
        "PULSECART_CONNECTIONS",
        _WHERE,
        "NUMBER",
        "The most connections of one process to Pub/Sub by REST. Each carries one request at a time.",
        (1, 1000),
        default=DEFAULT_CONNECTIONS,
    )
    connect_to: str = _setting(
        "PULSECART_CONNECT_TO",
        _WHERE,
        "HOST:PORT",
        "The address to connect to in place of the endpoint's, for private and restricted endpoints. TLS verifies the "
        "endpoint's name.",
        default="",
        validator=values.address,
        shown="none",
    )
    ca_file: str = _setting(
        "PULSECART_CA_FILE",
        _WHERE,
        "FILE",
        "The root certificates to trust for Pub/Sub, as PEM.",
        default="",
        validator=values.file,
        shown="the system's",
    )
    client_certificate_file: str = _setting(
        "PULSECART_CLIENT_CERTIFICATE_FILE",
        _WHERE,
        "FILE",
        "The client certificate for mutual TLS with Pub/Sub, with its chain, as PEM.",
        default="",
        validator=values.file,
        shown="none",
    )
    client_key_file: str = _setting(
        "PULSECART_CLIENT_KEY_FILE",
        _WHERE,
        "FILE",
        "The private key of the client certificate, as PEM, if it is not in the same file.",
        default="",
        validator=values.file,
        shown="none",
    )
    emulator_host: str = _setting(
        "PUBSUB_EMULATOR_HOST",
        _WHERE,
        "HOST:PORT",
        "The address of the Pub/Sub emulator.",
        default="",
        validator=values.address,
        shown="none",
    )
    publish_deadline: float = _number(
        "PULSECART_PUBLISH_DEADLINE",
        _WHERE,
        "SECONDS",
        "How long the broker may take to confirm an event, from the end of the request's body; then the answer is 503.",
        (0.1, 600.0),
        default=10.0,
    )
    auth: str = _setting(
        "PULSECART_AUTH",
        _ACCESS,
        "[none|keys|oidc|keys,oidc]",
        "How callers are authenticated: by keys, by tokens of identity providers (oidc), by either, or not at all.",
        default=Factory(lambda self: "none" if self.environment == "dev" else "", takes_self=True),
        parse=values.parse_auth,
        validator=values.auth,
        shown="none in development; elsewhere it must be set",
    )
    sources: str = _setting(
        "PULSECART_SOURCES",
        _ACCESS,
        "FILE",
        "A TOML file of the sources: their keys or subjects, event types and rates. Changes count within 5 seconds.",
        default="",
        shown="none",
    )
    oidc_issuers: tuple[str, ...] = _setting(
        "PULSECART_OIDC_ISSUERS",
        _ACCESS,
        "URLS",
        "The issuers whose tokens are accepted, separated by commas.",
        default=(),
        parse=values.names,
        validator=values.issuers,
        shown="none",
    )
    oidc_audience: str = _setting(
        "PULSECART_OIDC_AUDIENCE",
        _ACCESS,
        "AUDIENCE",
        "The audience that tokens must be for.",
        default="",
        shown="none",
    )
    oidc_jwks: str = _setting(
        "PULSECART_OIDC_JWKS",
        _ACCESS,
        "FILE|URL",
        "Where the signing keys of the only issuer are, if not where its discovery says.",
        default="",
        validator=values.jwks,
        shown="none",
    )
    cors_origins: tuple[str, ...] = _setting(
        "PULSECART_CORS_ORIGINS",
        _ACCESS,
        "ORIGINS",
        "Origins whose web pages may send events, separated by commas, or *; never opens /dev.",
        default=(),
        parse=values.names,
        validator=values.origins,
        shown="none",
    )
    max_body_bytes: int = _number(
        "PULSECART_MAX_BODY_BYTES",
        _LIMITS,
        "BYTES",
        "The largest request body; at most Pub/Sub's 10,000,000.",
        (1, MAX_MESSAGE_BYTES),
        default=1_048_576,
    )
    max_batch_events: int = _number(
        "PULSECART_MAX_BATCH_EVENTS",
        _LIMITS,
        "NUMBER",
        "The most events in an array; streams of lines (NDJSON) may have any number.",
        (1, 100_000),
        default=10_000,
    )
    max_batch_bytes: int = _number(
        "PULSECART_MAX_BATCH_BYTES",
        _LIMITS,
        "BYTES",
        "The largest array of events; each event in it may have --max-body-bytes.",
        (1, 100_000_000),
        default=10_485_760,
    )
    max_streams: int = _number(
        "PULSECART_MAX_STREAMS",
        _LIMITS,
        "NUMBER",
        "The most streams of lines (NDJSON) at a time in one process, half of them of one source; beyond that the "
        "answer is 503.",
        (1, 1000),
        default=8,
    )
    min_stream_rate: int = _number(
        "PULSECART_MIN_STREAM_RATE",
        _LIMITS,
        "BYTES",
        "How many bytes a second, compressed or not, a stream must bring while pulsecart waits for it, or the answer "
        "is 408; 0 is any.",
        (0, 1_000_000_000),
        default=1000,
    )
    body_timeout: float = _number(
        "PULSECART_BODY_TIMEOUT",
        _LIMITS,
        "SECONDS",
        "How long a request body may take to arrive, or a stream may pause; then the answer is 408.",
        (0.1, 600.0),
        default=10.0,
    )
    max_messages: int = _number(
        "PULSECART_MAX_MESSAGES",
        _LIMITS,
        "NUMBER",
        "The most events in flight in one process; beyond that the answer is 503.",
        (1, 1_000_000),
        default=10_000,
    )
    max_bytes: int = _number(
        "PULSECART_MAX_BYTES",
        _LIMITS,
        "BYTES",
        "The most memory for events in one process, copies included; beyond that the answer is 503. Half is for bodies "
        "that are still arriving, half for events that wait for the broker.",
        (MAX_MESSAGE_BYTES, 100_000_000_000),
        default=100_000_000,
    )
    max_connections: int = _number(
        "PULSECART_MAX_CONNECTIONS",
        _LIMITS,
        "NUMBER",
        "The most connections of one process. Beyond that an idle one is closed; if none is idle, the new one gets a "
        "503.",
        (1, 1_000_000),
        default=5_000,
    )
    connection_bytes: int = _number(
        "PULSECART_CONNECTION_BYTES",
        _LIMITS,
        "BYTES",
        "How much of a body each connection may hold even if --max-bytes is used up.",
        (0, MAX_MESSAGE_BYTES),
        default=16_384,
    )
    ordering: Mapping[str, str] = _setting(
        "PULSECART_ORDERING",
        _BATCHING,
        "TOPIC=ORDERING,...",
        "What is delivered in order, by topic: topic=user, topic=shards:8 or topic=none, separated by commas.",
        default={},
        parse=values.parse_ordering,
        validator=values.ordering,
        shown="user for every topic",
    )
    batching: Mapping[str, Batching] = _setting(
        "PULSECART_BATCHING",
        _BATCHING,
        "TOPIC=BATCHING,...",
        "How events share requests to the broker, by topic: topic=messages:bytes:milliseconds, separated by commas.",
        default={USER_ACTIONS: Batching(max_latency=0.05)},
        parse=values.parse_batching,
        validator=values.batching,
        shown=f"{USER_ACTIONS}=100:1048576:50, others 100:1048576:0",
    )
    log_level: str = _choice(
        "PULSECART_LOG_LEVEL",
        _TELEMETRY,
        ("debug", "info", "warning", "error"),
        "The lowest level that is logged: debug, info (a line for each event), warning or error.",
        default="info",
    )
    personal_data: str = _choice(
        "PULSECART_PERSONAL_DATA",
        _TELEMETRY,
        ("true", "false"),
        "Whether spans may contain ordering keys, and logs the messages of unexpected errors: true or false.",
        default="false",
    )
    metrics_port: int = _number(
        "PULSECART_METRICS_PORT",
        _TELEMETRY,
        "NUMBER",
        "The port for Prometheus to scrape /metrics on, such as 9464; 0 is none. It needs the extra prometheus.",
        (0, 65535),
        default=0,
    )
    metrics_host: str = _setting(
        "PULSECART_METRICS_HOST",
        _TELEMETRY,
        "ADDRESS",
        "The address on which /metrics is served. It has no authentication.",
        default="127.0.0.1",
    )
    trace_callers: Literal["always", "ratio", "never"] = _choice(
        "PULSECART_TRACE_CALLERS",
        _TELEMETRY,
        ("always", "ratio", "never"),
        "Which requests and events are traced because their caller's traceparent is sampled: all (always), those whose "
        "trace id OTEL_TRACES_SAMPLER would choose too (ratio), or none (never).",
        default=Factory(lambda self: "always" if self.environment == "dev" else "ratio", takes_self=True),
        shown="always in development, else ratio",
    )
    trace_url: str = _setting(
        "PULSECART_TRACE_URL",
        _TELEMETRY,
        "URL",
        "The address of a trace for pulsecart trace, with {trace_id} as the placeholder.",
        default="",
        validator=values.trace_url,
        shown="none",
    )
    dev_hosts: tuple[str, ...] = _setting(
        "PULSECART_DEV_HOSTS",
        _DEVELOPMENT,
        "HOSTS",
        "Host names, addresses and networks that may use /dev in addition to loopback, separated by commas.",
        default=(),
        parse=values.names,
        validator=values.host_names,
        shown="none",
    )

    def __attrs_post_init__(self) -> None:
        if problems := self._contradictions():
            raise SettingsError(problems)

    @property
    def limits(self) -> Limits:
        """The limits of the transport.

        A topic ordered by user does not wait for more messages: with one key per user, few would come.
        """
        batching = {
            topic: batching if self.ordering.get(topic, "user") != "user" else evolve(batching, max_latency=0)
            for topic, batching in self.batching.items()
        }
        return Limits(
            deadline=self.publish_deadline,
            max_messages=self.max_messages,
            max_bytes=self.max_bytes // 2,  # the other half is for bodies that are still arriving
            batching=batching,
        )

    @property
    def size_limit(self) -> SizeLimit:
        """How large a message may be, by the wire, on every transport."""
        return GRPC_LIMIT if self.wire == "grpc" else REST_LIMIT

    @property
    def orderings(self) -> dict[str, Ordering]:
        """The ordering of each topic for which one is set."""
        fixed = {"user": by_user, "none": unordered}
        return {
            topic: fixed.get(choice) or in_shards(int(choice.removeprefix("shards:")))
            for topic, choice in self.ordering.items()
        }

    @property
    def catalog(self) -> Catalog:
        """The catalog of the event types that are served. Raises `DefinitionError`."""
        return load_catalog(self.events, commerce=self.commerce_events == "true")

    @property
    def uses_oidc(self) -> bool:
        """Whether tokens of identity providers are accepted."""
        return "oidc" in self.auth

    @property
    def has_dev(self) -> bool:
        """Whether there are `/dev` routes: in development, unless events go to real Pub/Sub."""
        return self.environment == "dev" and self.transport != "pubsub"

    def may_use_dev(self, host: str) -> bool:
        """Return whether a host, by name or address, may use the `/dev` routes: loopback and `dev_hosts` may."""
        return is_loopback(host) or is_listed(host, self.dev_hosts)

    def require_topics(self, known: Collection[str]) -> None:
        """Check that the settings by topic name topics that exist. Raises `SettingsError`."""
        listed = ", ".join(known)
        by_topic = {
            "PULSECART_ORDERING": self.ordering,
            "PULSECART_BATCHING": self.batching,
            "PULSECART_TOPICS": self.topics,
        }
        problems = [
            f"{variable}: no event type has the topic {topic!r}{nearest(topic, known) or f'; the topics are {listed}'}"
            for variable, topics in by_topic.items()
            for topic in topics
            if topic not in known and topic != USER_ACTIONS
        ]
        # Two topics in one would mix the order of a user's events.
        problems += [
            f"PULSECART_TOPICS: {topic}={name}, but {name} is another topic of the catalog: choose another name, or "
            f"give {name} one, too"
            for topic, name in self.topics.items()
            if name != topic and name in known and name not in self.topics
        ]
        if problems:
            raise SettingsError(problems)

    def _contradictions(self) -> list[str]:
        problems = []
        if self.transport == "memory" and self.environment != "dev":
            problems.append(
                f"the memory transport keeps nothing and is for development, but ENVIRONMENT is {self.environment}: "
                "set PULSECART_TRANSPORT=pubsub"
            )
        if self.transport == "memory" and self.workers > 1:
            problems.append(
                f"{self.workers} workers cannot share the memory transport, each would keep messages of its own: "
                "set PULSECART_WORKERS=1, or another transport"
            )
        if self.transport == "emulator" and not self.emulator_host:
            problems.append(
                "the emulator transport needs to know where the emulator is: set PUBSUB_EMULATOR_HOST "
                "(--emulator-host), such as 127.0.0.1:8085"
            )
        problems += self._contradictions_of_metrics() + self._contradictions_of_access()
        try:
            _ = self.limits
        except ValueError as error:
            problems.append(f"PULSECART_BATCHING and PULSECART_PUBLISH_DEADLINE: {error}")
        if self.wire == "grpc" and find_spec("google.pubsub_v1") is None:
            problems.append("PULSECART_WIRE=grpc needs google-cloud-pubsub: pip install 'pulsecart[grpc]'")
        if self.client_key_file and not self.client_certificate_file:
            problems.append("PULSECART_CLIENT_KEY_FILE needs PULSECART_CLIENT_CERTIFICATE_FILE")
        if self.transport == "pubsub":
            if self.project == _DEV_PROJECT:
                problems.append("the pubsub transport needs to know the project of the topics: set GCP_PROJECT_ID")
            if self.emulator_host:
                problems.append(
                    f"PUBSUB_EMULATOR_HOST is {self.emulator_host}, but the transport is real Pub/Sub: "
                    "unset it, or set PULSECART_TRANSPORT=emulator"
                )
        return problems

    def _contradictions_of_metrics(self) -> list[str]:
        problems = []
        if self.metrics_port and self.workers > 1:
            problems.append(
                f"PULSECART_METRICS_PORT would show one of {self.workers} workers only: set PULSECART_WORKERS=1 and "
                "run more instances, or let each worker export by OTLP (OTEL_METRICS_EXPORTER=otlp)"
            )
        if self.metrics_port and find_spec("prometheus_client") is None:
            problems.append("PULSECART_METRICS_PORT needs prometheus-client: pip install 'pulsecart[prometheus]'")
        return problems

    def _contradictions_of_access(self) -> list[str]:
        if not self.auth:
            problem = (
                f"PULSECART_AUTH is not set, but ENVIRONMENT is {self.environment}: set it to keys, oidc or keys,oidc, "
                "or to none if all who can reach the port may send any event, as behind a mesh that authenticates"
            )
            return [problem]
        needs = {
            "PULSECART_SOURCES": (self.sources, self.auth != "none"),
            "PULSECART_OIDC_ISSUERS": (self.oidc_issuers, self.uses_oidc),
            "PULSECART_OIDC_AUDIENCE": (self.oidc_audience, self.uses_oidc),
        }
        problems = [
            f"PULSECART_AUTH is {self.auth}, so {variable} must be set"
            for variable, (value, needed) in needs.items()
            if needed and not value
        ]
        optional = {"PULSECART_OIDC_JWKS": (self.oidc_jwks, self.uses_oidc)}
        problems += [
            f"{variable} is set, but PULSECART_AUTH is {self.auth}, so that it has no effect: unset it, or set "
            f"PULSECART_AUTH={'keys' if variable == 'PULSECART_SOURCES' else 'oidc'}"
            for variable, (value, needed) in (needs | optional).items()
            if value and not needed
        ]
        if self.oidc_jwks and len(self.oidc_issuers) > 1:
            problems.append(
                f"PULSECART_OIDC_JWKS has the keys of one issuer, but PULSECART_OIDC_ISSUERS names "
                f"{len(self.oidc_issuers)}: name one, or unset PULSECART_OIDC_JWKS"
            )
        if "*" in self.cors_origins and len(self.cors_origins) > 1:
            problems.append("PULSECART_CORS_ORIGINS has * and other origins: * already allows all of them")
        return problems
