"""Access tokens, from google-auth's credentials and a local token endpoint."""

import asyncio
import base64
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from google.auth.credentials import AnonymousCredentials
from google.oauth2.credentials import Credentials
from google.oauth2.service_account import Credentials as ServiceAccount
from hypothesis import given, settings
from hypothesis import strategies as st

from pulsecart import BrokerUnavailable
from pulsecart.transports.pubsub.tokens import Tokens
from tests.google_login import TokenEndpoint, new_key, service_account, token_endpoint

pytestmark = pytest.mark.anyio

LOGIN_KEY = new_key()
SECRET = "ya29.a0AfB" + "x1-Y_" * 20


@pytest.fixture(autouse=True)
def _fast(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "pulsecart")
    timing(monkeypatch, RETRY_SECONDS=0.05, LONGEST_BACKOFF=0.1, CLOCK_SECONDS=0.1)


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with token_endpoint(lifetime=3600) as served:
        yield served


def timing(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    for name, value in seconds.items():
        monkeypatch.setattr(f"pulsecart.transports.pubsub.tokens.{name}", value)


def user(url: str, **options: object) -> Credentials:
    return Credentials(None, refresh_token="r", token_uri=url, client_id="c", client_secret="s", **options)


def handled(handler: Callable[[], tuple[str, datetime]]) -> Credentials:
    """Return credentials that get their tokens from a function."""
    return Credentials(None, refresh_handler=lambda _request, scopes: handler())


def utc(seconds: float) -> datetime:
    """Return a time, from now, as google-auth represents it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(tzinfo=None)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def now_held(tokens: Tokens) -> tuple[tuple[str, str], ...] | None:
    try:
        return tokens.metadata
    except BrokerUnavailable:
        return None


@asynccontextmanager
async def opened(credentials: object, **options: object) -> AsyncIterator[Tokens]:
    tokens = Tokens(credentials, **options)
    try:
        await tokens.open()
        yield tokens
    finally:
        await tokens.aclose()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# Kinds of credentials


async def test_service_account_without_scopes_signs_its_own_tokens():
    """A service account gets the scope for Pub/Sub, and its tokens need no token endpoint, renewed ones included."""
    credentials = ServiceAccount.from_service_account_info(json.loads(service_account(LOGIN_KEY)))
    async with opened(credentials) as tokens:
        first = tokens.metadata
        claims = dict(first)["authorization"].removeprefix("Bearer ").split(".")[1]
        assert json.loads(base64.urlsafe_b64decode(claims + "==="))["scope"].endswith("/auth/pubsub")
        async with asyncio.timeout(20):
            while tokens.metadata == first:  # a token signed in the same second is the same
                await tokens.renew(first)


async def test_quota_project_is_in_the_metadata(endpoint):
    """The quota project of the credentials is sent with each call."""
    async with opened(user(endpoint.url, quota_project_id="who-pays")) as tokens:
        assert tokens.metadata == (*bearer("token-1"), ("x-goog-user-project", "who-pays"))


async def test_static_token_is_used_as_it_is(caplog):
    """A token that cannot be refreshed is used for ever; if the broker rejects it, that is logged once."""
    async with opened(Credentials("static")) as tokens:
        assert tokens.metadata == bearer("static")
        assert caplog.messages == []
        for _ in range(3):
            await tokens.renew(tokens.metadata)
        assert tokens.metadata == bearer("static")
    (line,) = caplog.messages
    assert "do not contain the necessary fields" in line


async def test_anonymous_credentials_send_nothing(caplog):
    """Anonymous credentials need no token."""
    async with opened(AnonymousCredentials()) as tokens:
        assert tokens.metadata == ()
    assert caplog.messages == []


async def test_valid_token_is_not_refreshed_on_open(endpoint):
    """Credentials that hold a good token do not ask for another one."""
    credentials = user(endpoint.url)
    credentials.token, credentials.expiry = "present", utc(3600)
    async with opened(credentials) as tokens:
        assert tokens.metadata == bearer("present")
    assert endpoint.asked == 0


# Opening and closing


async def test_endpoint_down_on_open(endpoint, caplog):
    """Without a token the metadata is an error that says why in the log; an outage is logged at its start and end."""
    endpoint.down = True
    async with opened(user(endpoint.url)) as tokens:
        with pytest.raises(BrokerUnavailable, match=r"^there is no valid access token$") as caught:
            _ = tokens.metadata
        assert "it is down" in caught.value.log_detail
        await until(lambda: endpoint.asked > 4)
        endpoint.down = False
        await until(lambda: now_held(tokens))
    assert caplog.messages == [
        "cannot get a new access token: RefreshError: it is down: None",
        "there is a new access token",
    ]


async def test_endpoint_hangs_on_open(endpoint, monkeypatch):
    """Opening waits for the first token for a limited time, and goes on in the background."""
    timing(monkeypatch, PATIENCE=0.2)
    endpoint.answering.clear()
    async with asyncio.timeout(3), opened(user(endpoint.url)) as tokens:
        with pytest.raises(BrokerUnavailable) as caught:
            _ = tokens.metadata
        assert "no answer to the request for a token yet" in caught.value.log_detail
        endpoint.answering.set()
        await until(lambda: now_held(tokens) == bearer("token-1"))


async def test_open_that_is_cancelled_leaves_nothing_behind(endpoint):
    """Cancelling open() stops what it has started."""
    before = asyncio.all_tasks()
    endpoint.answering.clear()
    tokens = Tokens(user(endpoint.url))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tokens.open(), 0.1)
    assert asyncio.all_tasks() <= before
    await tokens.aclose()


async def test_aclose_twice_and_without_open(endpoint):
    """Closing is allowed at any time, and renew() then returns at once."""
    tokens = Tokens(user(endpoint.url))
    await tokens.aclose()
    await tokens.renew(())
    await tokens.open()
    before = tokens.metadata
    for _ in range(2):
        await tokens.aclose()
    await tokens.renew(before)
    assert endpoint.asked == 1


async def test_aclose_that_is_cancelled_has_stopped_renewing(endpoint):
    """Cancelling aclose() leaves no task behind."""
    before = asyncio.all_tasks()
    tokens = Tokens(user(endpoint.url))
    await tokens.open()
    closing = asyncio.create_task(tokens.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_aclose_ends_a_renewal_that_callers_wait_for(endpoint):
    """A caller that waits for a renewal goes on when the transport is closed, without being cancelled."""
    tokens = Tokens(user(endpoint.url))
    await tokens.open()
    endpoint.answering.clear()
    waiting = asyncio.create_task(tokens.renew(tokens.metadata))
    await until(lambda: endpoint.asked == 2)
    await tokens.aclose()
    async with asyncio.timeout(5):
        assert await waiting is None


def test_process_ends_while_a_refresh_hangs(endpoint):
    """A token endpoint that never answers does not keep the process from ending."""
    endpoint.answering.clear()
    script = f"""
import asyncio, contextlib, threading, time
from google.oauth2.credentials import Credentials
from pulsecart.transports.pubsub.tokens import Tokens

async def main():
    tokens = Tokens(Credentials(None, refresh_token="r", token_uri="{endpoint.url}", client_id="c", client_secret="s"))
    opening = asyncio.create_task(tokens.open())
    while not any(thread.name == "pulsecart-token" for thread in threading.enumerate()):
        await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.wait([opening])
    print("closed", flush=True)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "closed\n"
        assert process.wait(5) == 0  # the request itself would time out after 10 s


def test_answer_after_the_event_loop_is_closed(endpoint):
    """A refresh that is answered when its event loop is gone ends quietly."""
    endpoint.answering.clear()

    async def give_up() -> None:
        tokens = Tokens(user(endpoint.url))
        opening = asyncio.create_task(tokens.open())
        await until(lambda: endpoint.asked)
        opening.cancel()
        await asyncio.wait([opening])

    asyncio.run(give_up())
    endpoint.answering.set()
    for thread in threading.enumerate():
        if thread.name == "pulsecart-token":
            thread.join(10)
            assert not thread.is_alive()


# Failures


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(200, b"<html>sign in to the network</html>", id="page"),
        pytest.param(200, b'{"token_type": "Bearer"}', id="no token"),
        pytest.param(200, b'{"access_token": "t", "expires_in": "soon"}', id="bad lifetime"),
        pytest.param(200, b'{"access_token": "t", "expires_in": 1e300}', id="huge lifetime"),
        pytest.param(200, b"\xff", id="not UTF-8"),
        pytest.param(403, b"", id="empty"),
    ],
)
async def test_garbage_answer(endpoint, status, body):
    """Renewal survives an answer that is none, of whatever kind."""
    endpoint.instead = status, body
    async with opened(user(endpoint.url)) as tokens:
        assert now_held(tokens) is None
        endpoint.instead = None
        await until(lambda: now_held(tokens))


async def test_status_500(endpoint):
    """Renewal survives errors of the endpoint, which google-auth retries on its own first."""
    endpoint.instead = 500, b"oops"
    async with opened(user(endpoint.url)) as tokens:
        endpoint.instead = None
        await until(lambda: now_held(tokens))


@pytest.mark.parametrize("error", [ValueError, RuntimeError, StopIteration, SystemExit, KeyboardInterrupt])
async def test_refresh_raises(error, caplog):
    """Renewal survives any exception."""
    fails = True

    def handler() -> tuple[str, datetime]:
        if fails:
            raise error("why it fails")
        return "works", utc(3600)

    async with opened(handled(handler)) as tokens:
        with pytest.raises(BrokerUnavailable) as caught:
            _ = tokens.metadata
        assert f"{error.__name__}: why it fails" in caught.value.log_detail
        fails = False
        await until(lambda: now_held(tokens) == bearer("works"))


async def test_hung_refresh_is_abandoned(endpoint, monkeypatch, caplog):
    """A refresh without an answer does not prevent the next one."""
    timing(monkeypatch, HUNG_SECONDS=0.2)
    hang = threading.Event()
    calls = []

    def handler() -> tuple[str, datetime]:
        calls.append(1)
        if len(calls) == 1:
            hang.wait(30)
        return f"call-{len(calls)}", utc(3600)

    async with opened(handled(handler)) as tokens:
        await until(lambda: now_held(tokens) == bearer("call-2"))
        hang.set()
    assert caplog.messages[0] == "cannot get a new access token: no answer within 0.2 s"


async def test_late_answer_of_an_abandoned_refresh_is_used(monkeypatch):
    """A token that arrives after its refresh was abandoned is used."""
    timing(monkeypatch, HUNG_SECONDS=0.1)
    late = threading.Event()
    calls = []

    def handler() -> tuple[str, datetime]:
        calls.append(1)
        if len(calls) == 1:
            late.wait(30)
            return "late", utc(3600)
        raise ValueError("only the first call succeeds")

    async with opened(handled(handler)) as tokens:
        await until(lambda: len(calls) > 2)
        late.set()
        await until(lambda: now_held(tokens) == bearer("late"))


async def test_no_thread_can_be_started(endpoint, monkeypatch, caplog):
    """Renewal goes on when the system has had no thread for it."""

    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        tokens = Tokens(user(endpoint.url))
        await tokens.open()
    try:
        await until(lambda: now_held(tokens))
    finally:
        await tokens.aclose()
    assert caplog.messages[0] == "cannot get a new access token: RuntimeError: can't start new thread"


async def test_expired_token_is_used_for_a_while_then_refused(endpoint, monkeypatch):
    """While a renewal is under way an expired token is still used; when renewals keep failing, it is an error."""
    timing(monkeypatch, PATIENCE=1.5)
    endpoint.lifetime = 1
    async with opened(user(endpoint.url)) as tokens:
        first, expiry = tokens.metadata, time.monotonic() + 1
        endpoint.down = True
        used_until = 0.0
        async with asyncio.timeout(20):
            while now_held(tokens) == first:
                used_until = time.monotonic()
                await asyncio.sleep(0.01)
        with pytest.raises(BrokerUnavailable, match="no valid access token") as caught:
            _ = tokens.metadata
        assert "it is down" in caught.value.log_detail
        assert used_until > expiry
        endpoint.down = False
        await until(lambda: now_held(tokens))


async def test_expired_on_arrival(endpoint, caplog):
    """A token that has expired on arrival is sent, because the clock may be wrong, and is renewed with back-off."""
    endpoint.lifetime = -7200
    async with opened(user(endpoint.url)) as tokens:
        started = time.monotonic()
        await until(lambda: endpoint.asked > 4)
        assert time.monotonic() - started > 0.15
        assert tokens.metadata[0][1].startswith("Bearer token-")
    assert caplog.messages == []


async def test_secrets_in_an_answer_are_not_shown(endpoint, caplog):
    """What looks like a token in an error is masked."""
    for instead in [
        (400, json.dumps({"access_token": SECRET}).encode()),
        (400, f"no: {SECRET}".encode()),
        (200, json.dumps({"id_token": SECRET}).encode()),
    ]:
        endpoint.instead = instead
        async with opened(user(endpoint.url)) as tokens:
            with pytest.raises(BrokerUnavailable) as caught:
                _ = tokens.metadata
            assert "RefreshError" in caught.value.log_detail
            assert SECRET[10:40] not in caught.value.log_detail + caplog.text + repr(tokens)


@settings(max_examples=25, deadline=None)
@given(before=st.text(max_size=20), secret=st.from_regex(r"[A-Za-z0-9_-]{40,200}", fullmatch=True))
def test_secrets_in_any_error_are_masked(before, secret):
    """Wherever a token is in an error's text, it is masked."""

    def handler() -> tuple[str, datetime]:
        raise ValueError(f"{before}{secret} is bad")

    async def reason() -> str:
        async with opened(handled(handler)) as tokens:
            with pytest.raises(BrokerUnavailable) as caught:
                _ = tokens.metadata
            return caught.value.log_detail

    detail = asyncio.run(reason())
    assert "is bad" in detail
    assert secret[:32] not in detail


# Clocks


async def test_token_is_renewed_before_it_expires(endpoint):
    """A token is renewed at half of a short lifetime."""
    endpoint.lifetime = 2
    async with opened(user(endpoint.url)) as tokens:
        started = time.monotonic()
        await until(lambda: now_held(tokens) == bearer("token-2"))
        assert 0.5 < time.monotonic() - started < 2


async def test_wall_clock_steps_forward(endpoint):
    """When the wall clock says that the token has expired, it is renewed."""
    ahead = SimpleNamespace(seconds=0.0)
    calls = []

    def handler() -> tuple[str, datetime]:
        calls.append(1)
        return f"call-{len(calls)}", utc(3600 + ahead.seconds)

    async with opened(handled(handler), clock=lambda: time.time() + ahead.seconds) as tokens:
        assert tokens.metadata == bearer("call-1")
        ahead.seconds = 7200.0
        await until(lambda: tokens.metadata == bearer("call-2"))
    assert len(calls) == 2


async def test_wall_clock_steps_back(endpoint):
    """When the wall clock steps back, the token is still renewed in time, by the monotonic clock."""
    endpoint.lifetime = 2
    behind = SimpleNamespace(seconds=0.0)
    async with opened(user(endpoint.url), clock=lambda: time.time() - behind.seconds) as tokens:
        assert tokens.metadata == bearer("token-1")
        behind.seconds = 7200.0
        await until(lambda: tokens.metadata == bearer("token-2"), 5)


async def test_token_that_one_clock_calls_valid_is_used(endpoint, monkeypatch):
    """While the clocks disagree and no token can be fetched, the token is used: the broker decides."""
    timing(monkeypatch, PATIENCE=0.0)
    ahead = SimpleNamespace(seconds=0.0)
    async with opened(user(endpoint.url), clock=lambda: time.time() + ahead.seconds) as tokens:
        await until(lambda: now_held(tokens))
        endpoint.down = True
        ahead.seconds = 7200.0
        await until(lambda: endpoint.asked > 3)
        assert tokens.metadata == bearer("token-1")


async def test_clock_raises(endpoint, caplog):
    """An unexpected error in the renewal is logged, and the renewal goes on."""
    endpoint.lifetime = 2
    broken = threading.Event()

    def clock() -> float:
        if broken.is_set():
            raise OSError("no clock")
        return time.time()

    async with opened(user(endpoint.url), clock=clock) as tokens:
        broken.set()
        await until(lambda: caplog.messages)
        broken.clear()
        await until(lambda: now_held(tokens) == bearer("token-2"))
    assert "it goes on" in caplog.messages[0]


# Renewal because the broker has rejected a token


async def test_rejected_token_is_renewed_once_for_many_callers(endpoint):
    """Callers whose token was rejected share one refresh; a token that was replaced already is not renewed."""
    async with opened(user(endpoint.url)) as tokens:
        rejected = tokens.metadata
        await asyncio.gather(*(tokens.renew(rejected) for _ in range(20)))
        assert tokens.metadata == bearer("token-2")
        await tokens.renew(rejected)
    assert endpoint.asked == 2


async def test_cancelled_caller_does_not_cancel_the_refresh(endpoint):
    """When one caller's time is over, the others still get the new token."""
    async with opened(user(endpoint.url)) as tokens:
        rejected = tokens.metadata
        endpoint.answering.clear()
        patient = asyncio.create_task(tokens.renew(rejected))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tokens.renew(rejected), 0.1)
        endpoint.answering.set()
        async with asyncio.timeout(10):
            await patient
        assert tokens.metadata == bearer("token-2")
    assert endpoint.asked == 2


async def test_broker_that_rejects_every_token(endpoint, monkeypatch):
    """The token endpoint is asked a limited number of times a second."""
    timing(monkeypatch, RETRY_SECONDS=0.3)
    async with opened(user(endpoint.url)) as tokens:
        started = time.monotonic()
        for _ in range(3):
            await asyncio.gather(*(tokens.renew(tokens.metadata) for _ in range(5)))
        assert time.monotonic() - started > 0.7
    assert endpoint.asked == 4


async def test_renewal_of_a_rejected_token_fails(endpoint, caplog):
    """When a rejected token cannot be renewed, renew() returns and logs why; the present token stays."""
    async with opened(user(endpoint.url)) as tokens:
        endpoint.down = True
        await tokens.renew(tokens.metadata)
        assert tokens.metadata == bearer("token-1")
    assert caplog.messages == ["cannot get a new access token: RefreshError: it is down: None"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://tokens.test/", "tokens.test"])
async def test_token_is_fetched_by_http_only(url):
    """Credentials whose token endpoint is no URL of HTTP get no token, and the reason is logged."""
    credentials = Credentials(None, refresh_token="r", token_uri=url, client_id="c", client_secret="s")
    async with opened(credentials) as tokens:
        with pytest.raises(BrokerUnavailable) as caught:
            _ = tokens.metadata
    assert "is no URL of HTTP" in caught.value.log_detail
