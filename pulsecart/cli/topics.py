"""`pulsecart topics`."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import click

from pulsecart.cli._broker import remote_transport
from pulsecart.errors import BrokerUnavailable, DefinitionError, SettingsError
from pulsecart.serve.environment import load_settings
from pulsecart.serve.settings import Settings

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.provision import Change, Plan
    from pulsecart.transports.pubsub.subscriptions import Subscription

__all__ = ["command"]

EXIT_TO_DO = 2
"""The exit status of a plan with something to do. Errors, also those of usage, have 1."""

PROJECTS, PROJECTS_SCOPE = "cloudresourcemanager.googleapis.com:443", "https://www.googleapis.com/auth/cloud-platform"


@click.group("topics")
def command() -> None:
    """Create the topics of the catalog, and subscriptions.

    The catalog, the project and the transport are those of the settings, in the environment or in a file .env in the
    working directory. Nothing is deleted.
    """


class _Command(click.Command):
    """A command with these options, whose errors of usage have the exit status 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.params += [
            click.Option(
                ["--subscriptions", "file"],
                type=click.Path(dir_okay=False, path_type=Path),
                help="A TOML file of subscriptions: a table for each, with topic, dead_letter_topic, "
                "max_delivery_attempts and filter.",
            ),
            click.Option(
                ["--project-number"],
                help="The number of the project, which is part of the name of Pub/Sub's service agent. By default it "
                "is looked up if there are dead letters.",
            ),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.exit_code = 1  # type: ignore[misc]
            raise


@command.command("plan", cls=_Command)
def plan(file: Path | None, project_number: str | None, *, as_json: bool) -> None:
    """Print what `apply` would do.

    The exit status is 0 if there is nothing to do, 2 if there is something, and 1 if something is wrong.
    """
    _run(file, project_number, apply=False, as_json=as_json)


@command.command("apply", cls=_Command)
def apply(file: Path | None, project_number: str | None, *, as_json: bool) -> None:
    """Create what is missing, and change what differs.

    If something fails, the rest is done nevertheless, and the exit status is 1: run it again to continue.
    """
    _run(file, project_number, apply=True, as_json=as_json)


def _run(file: Path | None, project_number: str | None, *, apply: bool, as_json: bool) -> None:
    from pulsecart.transports.pubsub.subscriptions import read_subscriptions

    sys.path.insert(0, str(Path.cwd()))  # for modules of PULSECART_EVENTS, as with python -m
    try:
        settings = load_settings()
        catalog = settings.catalog
        settings.require_topics(catalog.topics)
        subscriptions = read_subscriptions(file, catalog.topics, settings.topics) if file else []
        remote_transport(settings)  # it checks credentials and certificates
    except SettingsError as error:
        raise click.ClickException("\n  ".join(["nothing was done:", *error.problems])) from None
    except DefinitionError as error:
        raise click.ClickException(str(error)) from None
    topics = [settings.topics.get(topic, topic) for topic in catalog.topics]
    status = asyncio.run(_provision(settings, topics, subscriptions, project_number, apply=apply, as_json=as_json))
    sys.exit(status)


async def _provision(  # noqa: PLR0913 (what the command was given, and what was read)
    settings: Settings,
    topics: list[str],
    subscriptions: "list[Subscription]",
    project_number: str | None,
    *,
    apply: bool,
    as_json: bool,
) -> int:
    """Plan, apply if that is wanted and nothing is wrong, and return the exit status."""
    from pulsecart.transports.pubsub.provision import Provisioning, service_agent

    agent = ""
    if settings.transport == "pubsub" and any(each.dead_letter_topic for each in subscriptions):
        agent = service_agent(project_number or await _number_of(settings))
    async with remote_transport(settings).api() as api:
        provisioning = Provisioning(api, settings.project, agent)
        plan = await provisioning.plan(topics, subscriptions)
        results: list[str | None] = []
        for change in plan.changes if not plan.problems else ():
            results.append(await provisioning.apply(change) if apply else None)
            if not as_json:
                click.echo(_line(change) + (f"\n    failed: {results[-1]}" if results[-1] else ""))
    failed = len(results) - results.count(None)
    if as_json:
        click.echo(json.dumps(_document(settings, plan, results, apply=apply), indent=2))
    else:
        for problem in plan.problems:
            click.echo(f"! {problem}")
        click.echo(_summary(settings, plan, failed, apply=apply))
    if plan.problems or failed:
        return 1
    return EXIT_TO_DO if plan.changes and not apply else 0


async def _number_of(settings: Settings) -> str:
    """Look up the number of the project."""
    from pulsecart.serve.wiring import transport_of
    from pulsecart.transports.pubsub import PubSubTransport
    from pulsecart.transports.pubsub.wire import WireError

    if settings.project.isdecimal():
        return settings.project
    try:
        transport = cast(PubSubTransport, transport_of(attrs.evolve(settings, endpoint=PROJECTS, connect_to="")))
        async with transport.api(PROJECTS_SCOPE) as api:
            return str((await api.call("GET", f"projects/{settings.project}"))["projectNumber"])
    except (WireError, BrokerUnavailable) as error:
        raise click.ClickException(
            f"the number of the project {settings.project}, which names Pub/Sub's service agent, cannot be looked up: "
            f"{error}\n  It needs roles/browser; or give --project-number, as from: gcloud projects describe "
            f"{settings.project} --format='value(projectNumber)'"
        ) from None


def _line(change: "Change") -> str:
    """Return a line of the diff for people."""
    if change.action == "grant":
        role, member = change.body["role"], change.body["member"]
        return f"+ permission {role} on the {change.kind} {change.name} for {member}"
    sign = "+" if change.action == "create" else "~"
    fields = [
        f"\n    {field}: {after}" if change.action == "create" else f"\n    {field}: {before or 'none'} -> {after}"
        for field, (before, after) in change.fields.items()
    ]
    return f"{sign} {change.kind} {change.name}{''.join(fields)}"


def _summary(settings: Settings, plan: "Plan", failed: int, *, apply: bool) -> str:
    where = f"in project {settings.project}"
    if plan.problems:
        return f"{where}: {len(plan.problems)} to be solved first; nothing was changed."
    if not plan.changes:
        return f"{where}: nothing to do; {plan.unchanged} are as they should be."
    count = f"{len(plan.changes)} to do" if not apply else f"{len(plan.changes) - failed} done, {failed} failed"
    return f"{where}: {count}; {plan.unchanged} are as they should be."


def _document(settings: Settings, plan: "Plan", results: "list[str | None]", *, apply: bool) -> dict[str, Any]:
    return {
        "project": settings.project,
        "changes": [
            {
                "action": change.action,
                "kind": change.kind,
                "name": change.name,
                "fields": {field: {"before": old, "after": new} for field, (old, new) in change.fields.items()},
                "result": "failed" if error else "done" if apply and results else "planned",
                "error": error,
            }
            for change, error in zip(plan.changes, results or [None] * len(plan.changes), strict=True)
        ],
        "problems": plan.problems,
        "unchanged": plan.unchanged,
    }
