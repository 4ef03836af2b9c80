"""Brings the topics and subscriptions of a project to what is wanted: plans changes, and applies them.

Nothing is deleted, and what is not mentioned stays as it is. Applying a plan that was applied in part continues it.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from attrs import define, field, frozen

from pulsecart.errors import BrokerUnavailable
from pulsecart.transports.pubsub.api import Api
from pulsecart.transports.pubsub.subscriptions import Subscription
from pulsecart.transports.pubsub.wire import WireError

__all__ = ["Change", "Plan", "Provisioning", "service_agent"]

PUBLISHER, SUBSCRIBER = "roles/pubsub.publisher", "roles/pubsub.subscriber"

POLICY_ATTEMPTS = 5
"""How often a policy is read and written, if others change it meanwhile."""

_AT_ONCE = 8

Kind = Literal["topic", "subscription"]

_ROLES = {
    "read": "roles/pubsub.viewer",
    "create": "roles/pubsub.editor",
    "update": "roles/pubsub.editor",
    "read the permissions of": "roles/pubsub.admin",
    "grant": "roles/pubsub.admin",
}
"""The least of Pub/Sub's own roles that permits to do something."""


@frozen(kw_only=True)
class Change:
    """Something to do. `fields` has what each field is before, or None, and after; `body` is the request for it."""

    action: Literal["create", "update", "grant"]
    kind: Kind
    name: str
    fields: Mapping[str, tuple[Any, Any]]
    body: Mapping[str, Any] = field(repr=False)


@define
class Plan:
    """What is to do, in order. If there are problems, which only people can solve, nothing should be done."""

    changes: list[Change]
    problems: list[str]
    unchanged: int = 0
    """How many topics and subscriptions are as they should be."""


def service_agent(project_number: str) -> str:
    """Return the account with which Pub/Sub itself forwards dead letters.

    https://cloud.google.com/pubsub/docs/dead-letter-topics#grant_forwarding_permissions
    """
    return f"serviceAccount:service-{project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"


class Provisioning:
    """Plans and applies changes of a project.

    `agent` is who must be permitted to forward dead letters; empty if nobody needs a permission, as on the emulator.
    """

    def __init__(self, api: Api, project: str, agent: str = "") -> None:
        self._api = api
        self._project = project
        self._agent = agent

    async def plan(self, topics: Iterable[str], subscriptions: Iterable[Subscription]) -> Plan:
        """Compare the project with these topics and subscriptions, and with the topics of dead letters."""
        subscriptions = list(subscriptions)
        dead = [subscription.dead_letter_topic for subscription in subscriptions if subscription.dead_letter_topic]
        turn = asyncio.Semaphore(_AT_ONCE)

        async def examine(kind: Kind, name: str, wanted: Mapping[str, Any], role: str) -> _Found:
            async with turn:
                return await self._examine(kind, name, wanted, role)

        found = await asyncio.gather(
            *(examine("topic", topic, {}, "") for topic in topics),
            *(examine("topic", topic, {}, PUBLISHER) for topic in dict.fromkeys(dead)),
            *(
                examine("subscription", each.name, _wanted(each), SUBSCRIBER if each.dead_letter_topic else "")
                for each in subscriptions
            ),
        )
        changes = [change for changes, _problems in found for change in changes]
        return Plan(
            sorted(changes, key=lambda change: change.action == "grant"),  # on what exists by then
            [problem for _changes, problems in found for problem in problems],
            found.count(([], [])),
        )

    async def apply(self, change: Change) -> str | None:
        """Make a change, and return why that failed, or None. What somebody else has done meanwhile is fine."""
        path = self._path(change.kind, change.name)
        try:
            match change.action:
                case "create":
                    await self._create(path, change.body)
                case "update":
                    await self._api.call("PATCH", path, change.body)
                case _:
                    await self._grant(path, **change.body)
        except (WireError, BrokerUnavailable) as error:
            return _explained(error, change.action, change.kind, change.name)
        return None

    async def _examine(self, kind: Kind, name: str, wanted: Mapping[str, Any], role: str) -> "_Found":
        """Return what a topic or subscription needs, and the problems with it."""
        doing = "read"
        changes: list[Change] = []
        problems: list[str] = []
        path = self._path(kind, name)
        try:
            current = await self._get(path)
            if current is None:
                fields = {field: (None, value) for field, value in wanted.items() if value}
                changes.append(Change(action="create", kind=kind, name=name, fields=fields, body=self._body(wanted)))
            elif kind == "subscription":
                changes, problems = self._compare(name, current, wanted)
            doing = "read the permissions of"
            if role and self._agent and not (current and await self._may(path, role)):
                body = {"role": role, "member": self._agent}
                fields = {field: (None, value) for field, value in body.items()}
                changes.append(Change(action="grant", kind=kind, name=name, fields=fields, body=body))
        except (WireError, BrokerUnavailable) as error:
            return [], [_explained(error, doing, kind, name)]
        return changes, problems

    def _compare(self, name: str, current: Mapping[str, Any], wanted: Mapping[str, Any]) -> "_Found":
        policy = current.get("deadLetterPolicy", {})
        before = {
            "ordering": current.get("enableMessageOrdering", False),
            "topic": self._short(current.get("topic", "")),
            "filter": current.get("filter", ""),
            "dead_letter_topic": self._short(policy.get("deadLetterTopic", "")),
            "max_delivery_attempts": policy.get("maxDeliveryAttempts", 0),
        }
        different = {field: (before[field], value) for field, value in wanted.items() if before[field] != value}
        problems = [
            f"the {field} of the subscription {name} is {different.pop(field)[0]!r}, and Pub/Sub cannot change it to "
            f"{wanted[field]!r}: choose another name, or delete the subscription, which loses its messages"
            for field in ("ordering", "topic", "filter")
            if field in different
        ]
        if not different:
            return [], problems
        body = {
            "subscription": {
                "name": self._path("subscription", name),
                "topic": current.get("topic", ""),  # the emulator wants it
                "deadLetterPolicy": self._body(wanted)["deadLetterPolicy"],
            },
            "updateMask": "deadLetterPolicy",
        }
        return [Change(action="update", kind="subscription", name=name, fields=different, body=body)], problems

    def _body(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Return a topic or a subscription as the API has it."""
        body: dict[str, Any] = {}
        if wanted:
            body = {"topic": self._path("topic", wanted["topic"]), "enableMessageOrdering": True}
            if wanted["filter"]:
                body["filter"] = wanted["filter"]
            if "dead_letter_topic" in wanted:
                body["deadLetterPolicy"] = {
                    "deadLetterTopic": self._path("topic", wanted["dead_letter_topic"]),
                    "maxDeliveryAttempts": wanted["max_delivery_attempts"],
                }
        return body

    async def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return await self._api.call("GET", path)
        except WireError as error:
            if error.status == "NOT_FOUND":
                return None
            raise

    async def _create(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            await self._api.call("PUT", path, body)
        except WireError as error:
            if error.status != "ALREADY_EXISTS":
                raise

    async def _may(self, path: str, role: str) -> bool:
        policy = await self._policy(path)
        return any(_is_grant(binding, role) and self._agent in binding["members"] for binding in _bindings(policy))

    async def _grant(self, path: str, role: str, member: str) -> None:
        """Add a member to a role. If others change the policy meanwhile, read it and try again."""
        attempts = 0
        while True:
            attempts += 1
            policy = await self._policy(path)
            bindings = [
                {**binding, "members": sorted({*binding["members"], member})} if _is_grant(binding, role) else binding
                for binding in _bindings(policy)
            ]
            if not any(_is_grant(binding, role) for binding in bindings):
                bindings.append({"role": role, "members": [member]})
            try:
                await self._api.call("POST", f"{path}:setIamPolicy", {"policy": {**policy, "bindings": bindings}})
            except WireError as error:
                if error.status != "ABORTED" or attempts == POLICY_ATTEMPTS:
                    raise
            else:
                return

    async def _policy(self, path: str) -> dict[str, Any]:
        # Without a version, bindings that have a condition would be left out, and then lost.
        policy = await self._api.call("GET", f"{path}:getIamPolicy", query="options.requestedPolicyVersion=3")
        return {**policy, "version": 3}

    def _path(self, kind: Kind, name: str) -> str:
        return f"projects/{self._project}/{kind}s/{name}"

    def _short(self, path: str) -> str:
        """Return the name of a topic; the full one if it is in another project."""
        return path.removeprefix(self._path("topic", ""))


_Found = tuple[list[Change], list[str]]


def _wanted(subscription: Subscription) -> dict[str, Any]:
    wanted = {"topic": subscription.topic, "ordering": True, "filter": subscription.filter}
    if not subscription.dead_letter_topic:
        return wanted  # one that exists stays
    return wanted | {
        "dead_letter_topic": subscription.dead_letter_topic,
        "max_delivery_attempts": subscription.max_delivery_attempts,
    }


def _bindings(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    bindings: list[dict[str, Any]] = policy.get("bindings", [])
    return bindings


def _is_grant(binding: Mapping[str, Any], role: str) -> bool:
    """Return whether a binding gives a role without a condition."""
    return binding["role"] == role and "condition" not in binding


def _explained(error: WireError | BrokerUnavailable, action: str, kind: Kind, name: str) -> str:
    what = f"permissions on the {kind} {name}" if action == "grant" else f"the {kind} {name}"
    if isinstance(error, WireError) and error.status == "PERMISSION_DENIED":
        return f"no permission to {action} {what}: it needs {_ROLES[action]}"
    reason = f"{error.status}: {error}" if isinstance(error, WireError) else error.log_detail
    return f"cannot {action} {what}: {reason}"
