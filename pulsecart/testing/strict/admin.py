"""What administrators ask the service for: subscriptions, permissions, and the number of a project."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from pulsecart.testing.strict.faults import Fault

if TYPE_CHECKING:
    from pulsecart.testing.strict.server import StrictPubsub

__all__ = ["PROJECT_NUMBER", "answer"]

PROJECT_NUMBER = "123456789012"

MAX_FILTER_BYTES = 256
MIN_ATTEMPTS, MAX_ATTEMPTS = 5, 100

_PATH = re.compile(
    r"/v1/(?P<path>projects/[^/]+(/(?P<kind>topics|subscriptions)/(?P<name>[^/:]+))?)"
    r"(?P<verb>:(getIamPolicy|setIamPolicy|testIamPermissions))?"
)
_NAME = re.compile(r"(?!goog)[A-Za-z][\w.~+%-]{2,254}", re.ASCII)
_FIELDS = {
    "name",
    "topic",
    "enableMessageOrdering",
    "filter",
    "deadLetterPolicy",
    "ackDeadlineSeconds",
    "messageRetentionDuration",
    "pushConfig",
    "labels",
}
_CHANGEABLE = _FIELDS - {"name", "topic", "enableMessageOrdering", "filter"}


def answer(
    server: "StrictPubsub", method: str, path: str, query: str, read: Callable[[], bytes]
) -> dict[str, Any] | None:
    """Answer a request, whose body `read` returns, or return None if there is no such method. Raises `Fault`."""
    found = _PATH.fullmatch(path)
    if not found:
        return None
    resource, kind, verb = found["path"], found["kind"], found["verb"] or ""
    if kind is None:
        server.require("resourcemanager.projects.get")
        return {"projectId": resource.partition("/")[2], "projectNumber": PROJECT_NUMBER} if method == "GET" else None
    match method, verb:
        case "POST", ":testIamPermissions":
            _existing(server, resource)
            wanted = _decoded(read()).get("permissions", [])
            return {"permissions": [permission for permission in wanted if permission not in server.denied]}
        case "GET", ":getIamPolicy":
            server.require(f"pubsub.{kind}.getIamPolicy")
            return _policy(server, resource, int(parse_qs(query).get("options.requestedPolicyVersion", ["1"])[0]))
        case "POST", ":setIamPolicy":
            server.require(f"pubsub.{kind}.setIamPolicy")
            return _set_policy(server, resource, _decoded(read()).get("policy", {}))
    if kind == "subscriptions":
        match method, verb:
            case "GET", "":
                server.require("pubsub.subscriptions.get")
                return _existing(server, resource)
            case "PUT", "":
                server.require("pubsub.subscriptions.create")
                return _create(server, resource, _decoded(read()))
            case "PATCH", "":
                server.require("pubsub.subscriptions.update")
                return _update(server, resource, _decoded(read()))
    return None


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Fault("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error


def _existing(server: "StrictPubsub", resource: str) -> dict[str, Any]:
    if resource in server.topics:
        return {"name": resource}
    if resource not in server.subscriptions:
        raise Fault("NOT_FOUND", f"Resource not found (resource={resource.rpartition('/')[2]}).")
    return server.subscriptions[resource]


def _create(server: "StrictPubsub", resource: str, wanted: dict[str, Any]) -> dict[str, Any]:
    if not _NAME.fullmatch(resource.rpartition("/")[2]):
        raise Fault("INVALID_ARGUMENT", f"Invalid [subscriptions] name: (name={resource})")
    if resource in server.subscriptions:
        raise Fault("ALREADY_EXISTS", f"Resource already exists in the project (resource={resource}).")
    subscription = _checked(server, {"ackDeadlineSeconds": 10} | wanted | {"name": resource})
    server.subscriptions[resource] = subscription
    return subscription


def _update(server: "StrictPubsub", resource: str, wanted: dict[str, Any]) -> dict[str, Any]:
    current = _existing(server, resource)
    fields = [field for field in wanted.get("updateMask", "").split(",") if field]
    if not fields:
        raise Fault("INVALID_ARGUMENT", "The update_mask in the UpdateSubscriptionRequest must be set.")
    if wrong := set(fields) - _CHANGEABLE:
        raise Fault("INVALID_ARGUMENT", f"Invalid update_mask provided: {min(wrong)!r} is not a mutable field.")
    changes = {field: wanted.get("subscription", {}).get(field) for field in fields}
    server.subscriptions[resource] = _checked(server, current | changes)
    return server.subscriptions[resource]


def _checked(server: "StrictPubsub", subscription: dict[str, Any]) -> dict[str, Any]:
    """Return a subscription that follows the rules, or raise the fault of the one that it breaks."""
    if unknown := subscription.keys() - _FIELDS:
        raise Fault("INVALID_ARGUMENT", f"Unknown name {min(unknown)!r}: Cannot find field.")
    dead = subscription.get("deadLetterPolicy") or {}
    for topic in (subscription.get("topic", ""), *([dead["deadLetterTopic"]] if dead else [])):
        if topic not in server.topics:
            raise Fault("NOT_FOUND", f"Resource not found (resource={topic.rpartition('/')[2]}).")
    if dead and not MIN_ATTEMPTS <= dead.get("maxDeliveryAttempts", MIN_ATTEMPTS) <= MAX_ATTEMPTS:
        raise Fault("INVALID_ARGUMENT", "Invalid value for max_delivery_attempts: it must be from 5 to 100.")
    if len(subscription.get("filter", "").encode()) > MAX_FILTER_BYTES:
        raise Fault("INVALID_ARGUMENT", f"The filter has more than {MAX_FILTER_BYTES} bytes.")
    return subscription


def _policy(server: "StrictPubsub", resource: str, version: int) -> dict[str, Any]:
    """Return a policy. To a caller that does not know of conditions, bindings with one are not shown."""
    _existing(server, resource)
    policy = server.policies.get(resource, {"etag": "ACAB"})
    shown = {field: value for field, value in policy.items() if field != "bindings"}
    bindings = [one for one in policy.get("bindings", []) if version >= 3 or "condition" not in one]
    return shown | ({"bindings": bindings} if bindings else {})


def _set_policy(server: "StrictPubsub", resource: str, policy: dict[str, Any]) -> dict[str, Any]:
    current = _policy(server, resource, 3)
    if policy.get("etag", current["etag"]) != current["etag"]:
        raise Fault("ABORTED", "There were concurrent policy changes. Please retry the whole read-modify-write.")
    conditional = [one for one in current.get("bindings", []) if "condition" in one]
    if conditional and policy.get("version", 1) < 3:
        raise Fault("INVALID_ARGUMENT", "Policies with conditions must have the version 3.")
    server.policy_changes += 1
    server.policies[resource] = policy | {"etag": f"BwX{server.policy_changes}"}
    return server.policies[resource]
