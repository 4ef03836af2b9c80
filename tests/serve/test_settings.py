import os
import sys

import attrs
import pytest

from pulsecart import Batching, SettingsError
from pulsecart.serve.environment import load_settings, read_settings
from pulsecart.serve.settings import Settings


def read(**environment: str) -> Settings:
    return read_settings(environment)


def problems(**environment: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(**environment)
    return str(caught.value)


def test_defaults():
    """With nothing set, events go to memory on this machine."""
    assert read() == Settings(transport="memory")
    assert attrs.asdict(read()) == {
        "transport": "memory",
        "transport_options": {},
        "environment": "dev",
        "host": "127.0.0.1",
        "port": 8000,
        "workers": 1,
        "events": (),
        "project": "pulsecart-dev",
        "topics": {},
        "emulator_host": "",
        "endpoint": "pubsub.googleapis.com:443",
        "wire": "rest",
        "connections": 64,
        "connect_to": "",
        "ca_file": "",
        "client_certificate_file": "",
        "client_key_file": "",
        "publish_deadline": 10.0,
        "max_body_bytes": 1_048_576,
        "max_batch_events": 10_000,
        "max_batch_bytes": 10_485_760,
        "max_streams": 8,
        "min_stream_rate": 1000,
        "body_timeout": 10.0,
        "commerce_events": "true",
        "docs": "true",
        "drain_delay": 0.0,
        "max_messages": 10_000,
        "max_bytes": 100_000_000,
        "max_connections": 5_000,
        "connection_bytes": 16_384,
        "log_level": "info",
        "personal_data": "false",
        "metrics_port": 0,
        "metrics_host": "127.0.0.1",
        "trace_callers": "always",
        "trace_url": "",
        "ordering": {},
        "dev_hosts": (),
        "auth": "none",
        "sources": "",
        "oidc_issuers": (),
        "oidc_audience": "",
        "oidc_jwks": "",
        "cors_origins": (),
        "batching": {"pulsecart.user-actions": {"max_messages": 100, "max_bytes": 1_048_576, "max_latency": 0.05}},
    }


def test_every_setting_is_read_from_its_variable():
    """Each variable reaches its field, with the field's type."""
    assert read(
        PULSECART_TRANSPORT="emulator",
        ENVIRONMENT="staging",
        PULSECART_HOST="0.0.0.0",
        PORT="80",
        PULSECART_WORKERS="1",
        PULSECART_METRICS_PORT="9464",
        PULSECART_METRICS_HOST="0.0.0.0",
        PULSECART_EVENTS="a.b, c ,",
        PULSECART_COMMERCE_EVENTS="false",
        PULSECART_DOCS="true",
        GCP_PROJECT_ID="shop",
        PUBSUB_EMULATOR_HOST="localhost:8085",
        PULSECART_ENDPOINT="us-central1-pubsub.googleapis.com:443",
        PULSECART_TOPICS="a=shop.a, b.c=shop.b",
        PULSECART_WIRE="grpc",
        PULSECART_CONNECTIONS="128",
        PULSECART_CONNECT_TO="restricted.googleapis.com:443",
        PULSECART_CA_FILE=__file__,
        PULSECART_CLIENT_CERTIFICATE_FILE=__file__,
        PULSECART_CLIENT_KEY_FILE=__file__,
        PULSECART_PUBLISH_DEADLINE="2.5",
        PULSECART_MAX_BODY_BYTES="10000000",
        PULSECART_BODY_TIMEOUT="3",
        PULSECART_DRAIN_DELAY="5",
        PULSECART_MAX_MESSAGES="5",
        PULSECART_MAX_BYTES="20000000",
        PULSECART_ORDERING="a=shards:8,b=none",
        PULSECART_BATCHING="a=10:1000:20, b.c=1:1:0",
        PULSECART_LOG_LEVEL="warning",
        PULSECART_PERSONAL_DATA="true",
        PULSECART_TRACE_CALLERS="never",
        PULSECART_TRACE_URL="http://localhost:16686/trace/{trace_id}",
        PULSECART_DEV_HOSTS="pulsecart, 172.16.0.0/12,::1",
        PULSECART_AUTH="oidc, keys",
        PULSECART_SOURCES="sources.toml",
        PULSECART_OIDC_ISSUERS="https://accounts.google.com",
        PULSECART_OIDC_AUDIENCE="https://pulsecart.shop.example",
        PULSECART_OIDC_JWKS="http://127.0.0.1:8080/keys",
        PULSECART_CORS_ORIGINS="https://shop.example, http://localhost:3000",
    ) == Settings(
        transport="emulator",
        environment="staging",
        host="0.0.0.0",
        port=80,
        workers=1,
        metrics_port=9464,
        metrics_host="0.0.0.0",
        events=("a.b", "c"),
        commerce_events="false",
        docs="true",
        project="shop",
        emulator_host="localhost:8085",
        endpoint="us-central1-pubsub.googleapis.com:443",
        topics={"a": "shop.a", "b.c": "shop.b"},
        wire="grpc",
        connections=128,
        connect_to="restricted.googleapis.com:443",
        ca_file=__file__,
        client_certificate_file=__file__,
        client_key_file=__file__,
        publish_deadline=2.5,
        max_body_bytes=10_000_000,
        body_timeout=3.0,
        drain_delay=5.0,
        max_messages=5,
        max_bytes=20_000_000,
        ordering={"a": "shards:8", "b": "none"},
        log_level="warning",
        personal_data="true",
        trace_callers="never",
        trace_url="http://localhost:16686/trace/{trace_id}",
        dev_hosts=("pulsecart", "172.16.0.0/12", "::1"),
        auth="keys,oidc",
        sources="sources.toml",
        oidc_issuers=("https://accounts.google.com",),
        oidc_audience="https://pulsecart.shop.example",
        oidc_jwks="http://127.0.0.1:8080/keys",
        cors_origins=("https://shop.example", "http://localhost:3000"),
        batching={
            "a": Batching(max_messages=10, max_bytes=1000, max_latency=0.02),
            "b.c": Batching(max_messages=1, max_bytes=1, max_latency=0),
        },
    )


@pytest.mark.parametrize(("environment", "docs"), [("dev", "true"), ("staging", "false"), ("prod", "false")])
def test_documents_are_on_in_development(environment, docs):
    """The documents are on by default in development only."""
    shop = {"PULSECART_TRANSPORT": "pubsub", "GCP_PROJECT_ID": "shop", "PULSECART_AUTH": "none"}
    assert read(ENVIRONMENT=environment, **shop).docs == docs


def test_empty_variable_counts_as_not_set():
    """A shell passes PORT= for a default that is not set; this is not an error."""
    assert read(PORT="", PULSECART_TRANSPORT="") == Settings(transport="memory")


def test_emulator_host_implies_the_emulator():
    """PUBSUB_EMULATOR_HOST alone is enough, as with Google's clients."""
    assert read(PUBSUB_EMULATOR_HOST="localhost:8085").transport == "emulator"
    assert read(PUBSUB_EMULATOR_HOST="localhost:8085", PULSECART_TRANSPORT="memory").transport == "memory"


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_emulator_is_implied_only_in_development(environment):
    """A PUBSUB_EMULATOR_HOST that leaked into production is an error, unless the emulator is asked for by name."""
    assert problems(PUBSUB_EMULATOR_HOST="localhost:8085", ENVIRONMENT=environment, PULSECART_AUTH="none") == (
        f"PUBSUB_EMULATOR_HOST is set, but ENVIRONMENT is {environment} and PULSECART_TRANSPORT is not set: unset "
        "PUBSUB_EMULATOR_HOST, or set PULSECART_TRANSPORT=emulator if events are meant for an emulator"
    )
    chosen = read(
        PUBSUB_EMULATOR_HOST="localhost:8085",
        ENVIRONMENT=environment,
        PULSECART_TRANSPORT="emulator",
        PULSECART_AUTH="none",
    )
    assert chosen.transport == "emulator"


def test_settings_of_a_program_may_be_python_values():
    """A bool is taken for true and false, and one string for several names."""
    made = Settings(transport="memory", commerce_events=False, docs=True, events="myshop.events, myshop.more")
    assert (made.commerce_events, made.docs, made.events) == ("false", "true", ("myshop.events", "myshop.more"))


def test_all_that_production_needs_is_named_at_once():
    """Without a transport, what else is missing is found, too."""
    found = problems(ENVIRONMENT="prod")
    assert "PULSECART_TRANSPORT" in found
    assert "PULSECART_AUTH is not set" in found


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_memory_is_implied_on_loopback(host):
    """All loopback addresses are a developer's machine."""
    assert read(PULSECART_HOST=host).transport == "memory"


@pytest.mark.parametrize(
    "environment",
    [
        {"PULSECART_HOST": "0.0.0.0"},
        {"PULSECART_HOST": "::"},
        {"PULSECART_HOST": "shop.internal"},
        {"K_SERVICE": "pulsecart"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"ENVIRONMENT": "prod"},
    ],
)
def test_memory_is_not_implied_where_events_could_be_lost(environment):
    """In a container or on an open address, the transport must be set."""
    assert "PULSECART_TRANSPORT is not set" in problems(**environment)
    if "ENVIRONMENT" not in environment:
        assert read(**environment, PULSECART_TRANSPORT="memory").transport == "memory"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {"PULSECART_TRANSPORT": "memry"},
            "PULSECART_TRANSPORT (--transport) must be memory, emulator or pubsub, not 'memry'; did you mean",
        ),
        ({"PULSECART_TRANSPORT": "kafka"}, "not 'kafka'"),
        (
            {"ENVIRONMENT": "production"},
            "ENVIRONMENT (--environment) must be dev, staging or prod, not 'production'; did you mean 'prod'?",
        ),
        ({"ENVIRONMENT": "development"}, "not 'development'; did you mean 'dev'?"),
        ({"ENVIRONMENT": "PROD"}, "not 'PROD'; did you mean 'prod'?"),
        ({"ENVIRONMENT": "stage"}, "not 'stage'; did you mean 'staging'?"),
        ({"PORT": "http"}, "PORT (--port) must be a whole number from 0 to 65,535, not 'http'"),
        ({"PORT": "65536"}, "PORT (--port) must be"),
        ({"PULSECART_WORKERS": "0"}, "PULSECART_WORKERS (--workers) must be"),
        ({"PULSECART_WORKERS": "1.5"}, "PULSECART_WORKERS (--workers) must be"),
        ({"PULSECART_MAX_BODY_BYTES": "10000001"}, "PULSECART_MAX_BODY_BYTES (--max-body-bytes) must be"),
        ({"PULSECART_PUBLISH_DEADLINE": "nan"}, "PULSECART_PUBLISH_DEADLINE (--publish-deadline) must be"),
        ({"PULSECART_BODY_TIMEOUT": "0"}, "PULSECART_BODY_TIMEOUT (--body-timeout) must be"),
        ({"PULSECART_ORDERING": "a=shards"}, "PULSECART_ORDERING (--ordering) must be topic=user, topic=none"),
        ({"PULSECART_ORDERING": "a"}, "not 'a='"),
        ({"PULSECART_BATCHING": "a=10"}, "PULSECART_BATCHING (--batching) must be topic=messages:bytes:milliseconds"),
        ({"PULSECART_BATCHING": "a=1001:1:0"}, "at most 1,000 messages"),
        ({"PULSECART_METRICS_PORT": "9464", "PULSECART_WORKERS": "2"}, "would show one of 2 workers only"),
        ({"PULSECART_TOPICS": "a"}, "PULSECART_TOPICS (--topics) must be topic=name, separated by commas; a name has"),
        ({"PULSECART_TOPICS": "a=projects/p/topics/t"}, "not 'a=projects/p/topics/t'"),
        ({"PULSECART_TOPICS": "a=google.a"}, "not 'a=google.a'"),
        ({"PULSECART_TOPICS": "a=shop.a,a=shop.b"}, "with each topic once, not 'a=shop.a,a=shop.b'"),
        ({"PULSECART_TOPICS": "a=shop.a,b=shop.a"}, "with each name once, not 'shop.a,shop.a'"),
        ({"PULSECART_TRANSPRT": "memory"}, "PULSECART_TRANSPRT is not a setting; did you mean PULSECART_TRANSPORT?"),
        ({"PULSECART_ZZZ": "1"}, "PULSECART_ZZZ is not a setting"),
        ({"PULSECART_TRANSPORT": "memory", "ENVIRONMENT": "prod"}, "ENVIRONMENT is prod"),
        ({"PULSECART_TRANSPORT": "memory", "PULSECART_WORKERS": "2"}, "2 workers cannot share"),
        ({"PULSECART_TRANSPORT": "emulator"}, "set PUBSUB_EMULATOR_HOST"),
        ({"PULSECART_TRANSPORT": "pubsub"}, "set GCP_PROJECT_ID"),
        ({"PULSECART_TRANSPORT": "pubsub", "PUBSUB_EMULATOR_HOST": "h:1"}, "the transport is real Pub/Sub"),
        ({"PUBSUB_EMULATOR_HOST": "http://127.0.0.1:8085"}, "PUBSUB_EMULATOR_HOST (--emulator-host) must be host:port"),
        ({"PUBSUB_EMULATOR_HOST": "127.0.0.1"}, "must be host:port"),
        ({"GCP_PROJECT_ID": "a/b c"}, "GCP_PROJECT_ID (--project) must be a project id"),
        ({"PORT": "8_0"}, "PORT (--port) must be"),
        ({"PULSECART_LOG_LEVEL": "warn"}, "PULSECART_LOG_LEVEL (--log-level) must be debug, info, warning or error"),
        ({"PULSECART_PERSONAL_DATA": "yes"}, "must be true or false"),
        ({"PULSECART_TRACE_CALLERS": "some"}, "must be always, ratio or never"),
        ({"PULSECART_TRACE_URL": "http://localhost/trace"}, "a URL with {trace_id} in it"),
        (
            {
                "PULSECART_PUBLISH_DEADLINE": "1",
                "PULSECART_ORDERING": "pulsecart.user-actions=none",
                "PULSECART_BATCHING": "pulsecart.user-actions=10:1000:600",
            },
            "PULSECART_BATCHING and PULSECART_PUBLISH_DEADLINE: pulsecart.user-actions: messages may wait",
        ),
        ({"PORT": "٣"}, "PORT (--port) must be"),
        ({"PORT": "9" * 5000}, f"PORT (--port) must be a whole number from 0 to 65,535, not '{'9' * 99}…"),
        ({"PULSECART_BATCHING": f"a={'9' * 5000}:1:0"}, "PULSECART_BATCHING (--batching) must be"),
        ({"PULSECART_PORT": "80"}, "PULSECART_PORT is not a setting; did you mean PORT?"),
        ({"PULSECART_PROJECT": "p"}, "PULSECART_PROJECT is not a setting; did you mean GCP_PROJECT_ID?"),
        ({"PULSECART_GCP_PROJECT_ID": "p"}, "did you mean GCP_PROJECT_ID?"),
        ({"PULSECART_ENVIRONMENT": "dev"}, "did you mean ENVIRONMENT?"),
        ({"PULSECART_EMULATOR_HOST": "h:1"}, "did you mean PUBSUB_EMULATOR_HOST?"),
        ({"PULSECART_DEV_HOSTS": "http://pulsecart"}, "host names, addresses or networks without a port"),
        ({"PULSECART_DEV_HOSTS": "pulsecart:8000"}, "not 'pulsecart:8000'"),
        ({"PULSECART_DEV_HOSTS": "10.0.0.0/33"}, "not '10.0.0.0/33'"),
    ],
)
def test_wrong_setting_is_an_error_that_names_the_remedy(environment, says):
    """The message names the variable and the values that it accepts."""
    assert says in problems(**environment)


@pytest.mark.parametrize("mark", ["K_SERVICE", "KUBERNETES_SERVICE_HOST"])
def test_address_in_a_container(mark):
    """On Cloud Run and Kubernetes the service listens on all addresses, unless one is set."""
    environment = {mark: "pulsecart", "PULSECART_TRANSPORT": "memory"}
    assert read(**environment).host == "0.0.0.0"
    assert read(**environment, PULSECART_HOST="127.0.0.1").host == "127.0.0.1"


def test_metrics_without_the_package_name_the_extra(monkeypatch):
    """/metrics needs an optional dependency."""
    monkeypatch.setattr("pulsecart.serve.settings.find_spec", lambda name: None)
    assert "pip install 'pulsecart[prometheus]'" in problems(PULSECART_METRICS_PORT="9464")


def test_grpc_without_its_package_names_the_extra(monkeypatch):
    """The gRPC wire is an extra."""
    monkeypatch.setitem(sys.modules, "google.pubsub_v1", None)
    assert "pip install 'pulsecart[grpc]'" in problems(PULSECART_WIRE="grpc", PULSECART_TRANSPORT="memory")


@pytest.mark.parametrize("name", ["PULSECART_CA_FILE", "PULSECART_CLIENT_CERTIFICATE_FILE"])
def test_file_that_cannot_be_read_is_rejected(name):
    """A file is read at startup, so that a wrong path is found then."""
    assert "must be a file that can be read, not '/nowhere.pem': No such file" in problems(**{name: "/nowhere.pem"})


def test_client_key_without_certificate_is_rejected():
    """A client's key alone has no use."""
    assert "needs PULSECART_CLIENT_CERTIFICATE_FILE" in problems(PULSECART_CLIENT_KEY_FILE=__file__)


@pytest.mark.parametrize("variable", ["PULSECART_ENDPOINT", "PUBSUB_EMULATOR_HOST"])
@pytest.mark.parametrize("value", ["user:hunter2@host:80", "hunter2@host:80", "http://user:hun/ter2@host"])
def test_credentials_in_an_address_are_not_repeated(variable, value):
    """An address with a user and password is rejected without showing them."""
    text = problems(**{variable: value})
    assert f"{variable} (" in text
    assert "'…@host" in text
    assert "ter2" not in text


# From pods of a namespace with the Services pulsecart and pulsecart-api, one of them with IPv6, all with several ports.
SERVICE_LINKS = {
    "PULSECART_SERVICE_HOST": "10.0.0.1",
    "PULSECART_SERVICE_PORT": "80",
    "PULSECART_SERVICE_PORT_HTTP": "80",
    "PULSECART_SERVICE_PORT_HTTP_METRICS": "9464",
    "PULSECART_PORT": "tcp://10.0.0.1:80",
    "PULSECART_PORT_80_TCP": "tcp://10.0.0.1:80",
    "PULSECART_PORT_80_TCP_PROTO": "tcp",
    "PULSECART_PORT_80_TCP_PORT": "80",
    "PULSECART_PORT_80_TCP_ADDR": "10.0.0.1",
    "PULSECART_PORT_53_UDP": "udp://10.0.0.1:53",
    "PULSECART_PORT_53_UDP_PROTO": "udp",
    "PULSECART_PORT_36412_SCTP": "sctp://10.0.0.1:36412",
    "PULSECART_PORT_36412_SCTP_ADDR": "10.0.0.1",
    "PULSECART_API_SERVICE_HOST": "fd00::1",
    "PULSECART_API_SERVICE_PORT": "8080",
    "PULSECART_API_PORT": "tcp://[fd00::1]:8080",
    "PULSECART_API_PORT_8080_TCP_ADDR": "fd00::1",
    "PULSECART_API_V2_PORT": "udp://10.0.0.3:53",
}


def test_service_links_of_kubernetes_are_ignored():
    """A Service named pulsecart, or pulsecart-api, does not keep the pods of its namespace from starting."""
    assert read(**SERVICE_LINKS) == read()


@pytest.mark.parametrize(
    "variable",
    [
        "PULSECART_SERVICE_HOSTS",
        "PULSECART_SERVICE",
        "PULSECART_PORT_HTTP_TCP",
        "PULSECART_PORT_80_ICMP",
        "PULSECART_PORT_80_TCP_HOST",
        "PULSECART_API_PORT",
    ],
)
def test_variable_that_resembles_a_service_link_is_rejected(variable):
    """Only the exact form of a service link is ignored, and for PULSECART_…_PORT the value counts too."""
    assert f"{variable} is not a setting" in problems(**{variable: "80"})


@pytest.mark.parametrize(
    ("listed", "host", "may"),
    [
        ("", "localhost", True),
        ("", "LocalHost", True),
        ("", "127.8.9.1", True),
        ("", "::1", True),
        ("", "::ffff:127.0.0.1", True),
        ("", "0.0.0.0", False),
        ("", "192.168.1.5", False),
        ("", "localhost.example", False),
        ("Shop.test", "shop.TEST", True),
        ("shop.test", "a.shop.test", False),
        ("192.168.1.5", "192.168.1.5", True),
        ("192.168.1.5", "::ffff:192.168.1.5", True),
        ("shop.test,192.168.0.0/16,fd00::/8", "192.168.1.5", True),
        ("shop.test,192.168.0.0/16,fd00::/8", "fd12::1", True),
        ("shop.test,192.168.0.0/16,fd00::/8", "10.0.0.1", False),
    ],
)
def test_dev_routes_are_for_loopback_and_listed_hosts(listed, host, may):
    """PULSECART_DEV_HOSTS adds names, addresses and networks to loopback."""
    assert read(PULSECART_DEV_HOSTS=listed).may_use_dev(host) is may


def test_unknown_variable_without_a_close_name_has_no_hint():
    """A variable that resembles no setting gets no hint."""
    assert problems(PULSECART_ZZZ="1") == "PULSECART_ZZZ is not a setting"


def test_all_problems_are_reported_together():
    """Unknown variables, bad values and contradictions come in one message."""
    text = problems(
        PORT="x", PULSECART_ZZZ="1", PULSECART_TRANSPORT="memory", ENVIRONMENT="staging", PULSECART_WORKERS="3"
    )
    assert len(text.splitlines()) == 5


def test_settings_made_in_python_are_validated():
    """Wrong values and contradictions are errors however settings are made."""
    with pytest.raises(SettingsError, match="is for development"):
        Settings(transport="memory", environment="prod")
    for wrong in ({"transport": "memry"}, {"port": -1}, {"port": "80"}, {"publish_deadline": -3.0}):
        with pytest.raises(SettingsError, match="must be"):
            Settings(**{"transport": "memory"} | wrong)


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_authentication_must_be_decided_outside_development(environment):
    """In staging and prod an open service is a decision, also with a transport of one's own."""
    options = {"ENVIRONMENT": environment, "PULSECART_TRANSPORT": "pubsub", "GCP_PROJECT_ID": "shop"}
    assert problems(**options).startswith(f"PULSECART_AUTH is not set, but ENVIRONMENT is {environment}: set it to ")
    assert read(**options, PULSECART_AUTH="none").auth == "none"


OIDC = {
    "PULSECART_AUTH": "oidc",
    "PULSECART_SOURCES": "f",
    "PULSECART_OIDC_ISSUERS": "https://a.example",
    "PULSECART_OIDC_AUDIENCE": "x",
}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PULSECART_AUTH": "key"}, "must be none, keys, oidc or keys,oidc, not 'key'; did you mean"),
        ({"PULSECART_AUTH": "none,keys"}, "must be none, keys, oidc or keys,oidc, not 'keys,none'"),
        ({"PULSECART_AUTH": "keys"}, "PULSECART_AUTH is keys, so PULSECART_SOURCES must be set"),
        (OIDC | {"PULSECART_SOURCES": ""}, "so PULSECART_SOURCES must be set"),
        (OIDC | {"PULSECART_OIDC_ISSUERS": ""}, "so PULSECART_OIDC_ISSUERS must be set"),
        (OIDC | {"PULSECART_OIDC_AUDIENCE": ""}, "so PULSECART_OIDC_AUDIENCE must be set"),
        ({"PULSECART_SOURCES": "f"}, "PULSECART_SOURCES is set, but PULSECART_AUTH is none"),
        (OIDC | {"PULSECART_AUTH": "keys"}, "PULSECART_OIDC_AUDIENCE is set, but PULSECART_AUTH is keys"),
        ({"PULSECART_OIDC_JWKS": "f"}, "PULSECART_OIDC_JWKS is set, but PULSECART_AUTH is none"),
        (
            OIDC | {"PULSECART_OIDC_ISSUERS": "https://a,https://b", "PULSECART_OIDC_JWKS": "f"},
            "PULSECART_OIDC_JWKS has the keys of one issuer, but PULSECART_OIDC_ISSUERS names 2",
        ),
        *(
            (OIDC | {"PULSECART_OIDC_ISSUERS": issuer}, "PULSECART_OIDC_ISSUERS (--oidc-issuers) must be https URLs")
            for issuer in (
                "http://a.example",
                "a.example",
                "https://",
                "https://u:p@a.example",
                "https://a.example/#x",
                "https://a.example?x=1",
                "https://a.example:port",
                "https://[a",
                "https://a b",
                "ftp://127.0.0.1",
                "http://127.0.0.1.evil.example",
            )
        ),
        (OIDC | {"PULSECART_OIDC_JWKS": "http://a.example"}, "must be a file or an https URL"),
        (OIDC | {"PULSECART_OIDC_JWKS": "file:///a"}, "must be a file or an https URL"),
        *(
            ({"PULSECART_CORS_ORIGINS": origin}, "PULSECART_CORS_ORIGINS (--cors-origins) must be origins")
            for origin in ("shop.example", "https://shop.example/", "https://Shop.example", "https://*.example", "null")
        ),
        ({"PULSECART_CORS_ORIGINS": "*,https://a.example"}, "PULSECART_CORS_ORIGINS has * and other origins"),
    ],
)
def test_wrong_settings_of_access(environment, says):
    """What is missing, without effect or not safe is named."""
    assert says in problems(**environment)


@pytest.mark.parametrize(
    "issuer", ["https://a.example/tenant", "http://127.0.0.1:8080", "http://[::1]", "http://localhost"]
)
def test_issuers_on_loopback_need_no_tls(issuer):
    """Http is accepted on this machine only."""
    assert read(**OIDC | {"PULSECART_OIDC_ISSUERS": issuer}).oidc_issuers == (issuer,)


def test_latency_applies_to_topics_not_ordered_by_user():
    """Messages wait for others on topics that are sharded or unordered, not on those ordered by user."""
    topic = "pulsecart.user-actions"
    for choice, latency in (("user", 0), ("shards:4", 0.05), ("none", 0.05)):
        assert read(PULSECART_ORDERING=f"{topic}={choice}").limits.batching[topic].max_latency == latency
    assert read().limits.batching[topic].max_latency == 0


def test_unknown_topic_is_an_error():
    """A misspelled topic is rejected with a suggestion, or with the list of topics."""
    settings = read(PULSECART_ORDERING="shop.event=none", PULSECART_BATCHING="zzz=1:1:0")
    with pytest.raises(SettingsError) as caught:
        settings.require_topics(["shop.events"])
    assert caught.value.problems == (
        "PULSECART_ORDERING: no event type has the topic 'shop.event'; did you mean 'shop.events'?",
        "PULSECART_BATCHING: no event type has the topic 'zzz'; the topics are shop.events",
    )
    with pytest.raises(SettingsError, match="PULSECART_TOPICS: no event type has the topic 'shop.event'; did you mean"):
        read(PULSECART_TOPICS="shop.event=clicks").require_topics(["shop.events"])
    read(PULSECART_ORDERING="shop.events=user").require_topics(["shop.events"])


def test_name_of_another_topic_is_an_error():
    """Two topics in one would mix the order of a user's events. Names may be exchanged."""
    topics = ["shop.a", "shop.b"]
    with pytest.raises(SettingsError, match=r"shop\.a=shop\.b, but shop\.b is another topic of the catalog"):
        read(PULSECART_TOPICS="shop.a=shop.b").require_topics(topics)
    read(PULSECART_TOPICS="shop.a=shop.b,shop.b=shop.a").require_topics(topics)
    read(PULSECART_TOPICS="shop.a=shop.a").require_topics(topics)


def test_dotenv_is_read_into_the_environment_and_overrides_nothing(tmp_path, monkeypatch):
    """.env in the working directory is read, also for OTEL_*; variables that are set already win."""
    (tmp_path / ".env").write_text("PORT=1234\nGCP_PROJECT_ID=from-file\nOTEL_SERVICE_NAME=shop\n")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ["GCP_PROJECT_ID"] = "from-environment"
    settings = load_settings()
    assert (settings.port, settings.project) == (1234, "from-environment")
    assert os.environ["OTEL_SERVICE_NAME"] == "shop"


def test_dotenv_that_is_not_utf8_is_an_error(tmp_path):
    """A .env in another encoding is rejected with its path."""
    (tmp_path / ".env").write_bytes(b"X=\xff")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        load_settings()


@pytest.mark.parametrize("wrong", ["PORT 8000", "=8000", "NAME='open", 'NAME="x" y', "NAME=a\0b"])
def test_malformed_dotenv_line_is_an_error_naming_file_and_line(tmp_path, wrong):
    """A line that is not NAME=value is an error, not a warning, and is not repeated: it may hold a secret."""
    (tmp_path / ".env").write_text(f"# settings\nPORT=1\n\n\n{wrong}\nGCP_PROJECT_ID=p\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.problems == (f"{tmp_path / '.env'}, line 5: must be NAME=value",)


def test_dotenv_that_cannot_be_read_is_an_error(tmp_path):
    """A .env that exists but cannot be opened is an error."""
    (tmp_path / ".env").symlink_to(".env")
    with pytest.raises(SettingsError, match=r"\.env cannot be read: "):
        load_settings()


def test_dotenv_that_is_a_directory_is_ignored(tmp_path):
    """Some projects name their virtual environment .env."""
    (tmp_path / ".env").mkdir()
    assert load_settings().port == 8000


def test_dotenv_of_a_parent_directory_is_not_read(tmp_path, monkeypatch):
    """Only the working directory's file counts."""
    (tmp_path / ".env").write_text("PORT=1234\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert load_settings().port == 8000
