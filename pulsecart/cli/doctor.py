"""`pulsecart doctor`."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import attrs
import click

from pulsecart.cli._broker import remote_transport
from pulsecart.errors import BrokerUnavailable, DefinitionError, SettingsError
from pulsecart.events import Catalog
from pulsecart.serve.environment import load_settings
from pulsecart.serve.settings import Settings
from pulsecart.telemetry.export import collectors, misconfigured

if TYPE_CHECKING:
    from pulsecart.transports import EmulatorTransport, PubSubTransport
    from pulsecart.transports.pubsub.api import Api

__all__ = ["command"]

CLOCK_SECONDS, BROKEN_CLOCK_SECONDS = 5, 300
"""From which difference between the clocks events have wrong times, and from which tokens are rejected."""

EXPIRY = timedelta(days=14)
"""How long before its expiry a certificate is worth a warning."""

CONNECT_SECONDS = 3.0

PUBLISH = "pubsub.topics.publish"


class Check(NamedTuple):
    """The result of a check: what was found, and what to do."""

    status: Literal["ok", "warn", "fail"]
    name: str
    text: str


@click.command("doctor")
def command() -> None:
    """Check that the service would work: settings, credentials, broker, topics, permissions, clock and telemetry.

    Run it where the service runs, with the same environment and working directory. There is one line for each check;
    the exit status is 1 if something would fail. Nothing is published or created.
    """
    sys.path.insert(0, str(Path.cwd()))  # for modules of PULSECART_EVENTS, as with python -m
    if asyncio.run(_report()):
        sys.exit(1)


async def _report() -> bool:
    """Print the checks as they are made, and return whether one has failed."""
    failed = False
    async for check in _checks():
        click.echo(f"{check.status:<4}  {check.name}: {check.text}")
        failed |= check.status == "fail"
    return failed


async def _checks() -> AsyncIterator[Check]:
    before = dict(os.environ)
    try:
        settings = load_settings()
    except SettingsError as error:
        for check in [*_settings(before), *(Check("fail", "settings", problem) for problem in error.problems)]:
            yield check
        return
    for check in _settings(before):
        yield check
    try:
        catalog = settings.catalog
        settings.require_topics(catalog.topics)
    except (DefinitionError, SettingsError) as error:
        yield Check("fail", "events", str(error))
        return
    yield Check("ok", "events", f"{len(list(catalog))} event types on {len(catalog.topics)} topics")
    for check in _access(settings, catalog):
        yield check
    async for check in _broker(settings, catalog):
        yield check
    faults = misconfigured()
    for signal, fault in faults.items():
        yield Check("fail", f"export of {signal}", fault)
    for signal, address in collectors().items():
        if signal not in faults:
            yield await _collector(signal, *address)


def _settings(before: dict[str, str]) -> Iterator[Check]:
    """Say which settings are set, and where each comes from."""
    defaults = 0
    for setting in attrs.fields(Settings):
        variable = setting.metadata["variable"]
        if text := os.environ.get(variable):
            origin = "the environment" if variable in before else ".env"
            yield Check("ok", "setting", f"{variable}={text} (from {origin})")
        else:
            defaults += 1
    yield Check("ok", "setting", f"{defaults} others have their defaults")


def _access(settings: Settings, catalog: Catalog) -> Iterator[Check]:
    from pulsecart.access.sources import SourcesFile
    from pulsecart.serve.access import Access

    if settings.auth == "none":
        status: Literal["ok", "warn"] = "ok" if settings.environment == "dev" else "warn"
        yield Check(status, "access", "all who reach the port may send any event (PULSECART_AUTH=none)")
        return
    try:
        Access(settings, catalog)
        sources = SourcesFile(settings.sources, [cls.event_type for cls in catalog]).current
    except SettingsError as error:
        for problem in error.problems:
            yield Check("fail", "sources", problem)
    else:
        yield Check("ok", "sources", f"{len(sources.by_name)} in {settings.sources}: {', '.join(sources.by_name)}")


async def _broker(settings: Settings, catalog: Catalog) -> AsyncIterator[Check]:
    if settings.transport not in ("emulator", "pubsub"):
        yield Check("ok", "broker", f"the {settings.transport} transport has nothing to check")
        return
    try:
        transport = remote_transport(settings)
    except SettingsError as error:
        for problem in error.problems:
            yield Check("fail", "broker", problem)
        return
    async with transport.api() as api:
        principal = ""
        if settings.transport == "pubsub":
            try:
                principal = api.principal
            except BrokerUnavailable as error:
                yield Check(
                    "fail", "credentials", f"{error.log_detail}: check GOOGLE_APPLICATION_CREDENTIALS, or log in"
                )
            else:
                yield Check("ok", "credentials", f"events are published as {principal}")
        async for check in _connection(transport):
            yield check
        try:
            async with transport:
                missing = await transport.check(catalog.topics)
        except BrokerUnavailable as error:
            yield Check("fail", "broker", f"no answer on the {settings.wire} wire: {error.log_detail}")
            return
        yield Check("ok", "broker", f"it answers on the {settings.wire} wire")
        for topic in catalog.topics:
            yield await _topic(settings, api, topic, principal, missing=topic in missing)


async def _connection(transport: "EmulatorTransport | PubSubTransport") -> AsyncIterator[Check]:
    from pulsecart.transports.pubsub.wire.probe import probe

    endpoint = transport.endpoint()
    via = f" by the proxy {endpoint.proxy.host}:{endpoint.proxy.port}" if endpoint.proxy else ""
    where = f"{endpoint.authority}{via}"
    try:
        found = await probe(endpoint)
    except OSError as error:
        reason = str(error) or type(error).__name__
        advice = "PULSECART_ENDPOINT, PULSECART_CA_FILE, the proxy and the firewall" if endpoint.tls else "that it runs"
        yield Check("fail", "endpoint", f"{where} cannot be reached: {reason}: check {advice}")
        return
    security = found.tls or "without TLS"
    text = f"{where} answers ({security}, connected in {found.connected_in * 1e3:.0f} ms)"
    if found.expires and found.expires - datetime.now(UTC) < EXPIRY:
        yield Check("warn", "endpoint", f"{text}; its certificate expires on {found.expires:%Y-%m-%d}: renew it")
    else:
        yield Check("ok", "endpoint", text)
    yield _clock(found.clock_offset)


def _clock(offset: float | None) -> Check:
    if offset is None:
        return Check("ok", "clock", "the broker does not tell the time")
    if abs(offset) <= CLOCK_SECONDS:
        return Check("ok", "clock", "it agrees with the broker's")
    effect = "tokens are rejected" if abs(offset) > BROKEN_CLOCK_SECONDS else "generated timestamps are wrong"
    direction = "behind" if offset > 0 else "ahead of"
    return Check(
        "fail" if abs(offset) > BROKEN_CLOCK_SECONDS else "warn",
        "clock",
        f"this machine's is {abs(offset):.0f} s {direction} the broker's, so that {effect}: synchronize it (NTP)",
    )


async def _topic(settings: Settings, api: "Api", topic: str, principal: str, *, missing: bool) -> Check:
    from pulsecart.transports.pubsub.wire import WireError

    name = settings.topics.get(topic, topic)
    described = f"topic {topic}" + (f" ({name})" if name != topic else "")
    if missing and settings.transport == "emulator" and settings.environment == "dev":
        return Check("ok", described, "does not exist yet; it is created when the service starts")
    if missing:
        return Check("fail", described, f"does not exist in project {settings.project}: run pulsecart topics apply")
    if settings.transport == "emulator":
        return Check("ok", described, "exists")
    path = f"projects/{settings.project}/topics/{name}:testIamPermissions"
    try:
        permissions = (await api.call("POST", path, {"permissions": [PUBLISH]})).get("permissions", [])
    except (WireError, BrokerUnavailable) as error:
        return Check("fail", described, f"whether it may be published to is unknown: {error}")
    if PUBLISH not in permissions:
        return Check("fail", described, f"{principal} may not publish to it: grant roles/pubsub.publisher on the topic")
    return Check("ok", described, f"exists, and {principal} may publish to it")


async def _collector(signal: str, host: str, port: int) -> Check:
    """Check that a collector accepts connections."""
    name = f"export of {signal}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        reason = str(error) or f"no connection within {CONNECT_SECONDS:g} s"
        return Check("fail", name, f"{host}:{port} cannot be reached: {reason}: check OTEL_EXPORTER_OTLP_ENDPOINT")
    writer.close()
    return Check("ok", name, f"{host}:{port} accepts connections")
