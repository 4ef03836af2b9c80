"""The service against its own OpenAPI document: generated requests, and answers that must be those described."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serving import Served, serving

EXAMPLES = 100


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving("--transport", "memory", cwd=tmp_path_factory.mktemp("service")) as running:
        yield running


def test_answers_are_those_described(served):
    """Right requests are accepted, wrong ones refused, and every answer has a status and a body that is described."""
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    seen = set()
    # A stream of events has no end.
    for result in described.exclude(path="/dev/stream").get_all_operations():
        operation = result.ok()
        # Without a body, nearly every request is right.
        modes = list(schemathesis.GenerationMode) if operation.body else [schemathesis.GenerationMode.POSITIVE]
        for mode in modes:
            seen |= statuses(operation, mode)
    assert {("POST /events/ingest", status) for status in (202, 400, 422)} <= seen


def statuses(operation: Any, mode: schemathesis.GenerationMode) -> set[tuple[str, int]]:
    """Send generated requests, check each answer, and return the statuses."""
    seen = set()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def answers(case):
        case.headers.pop("Content-Encoding", None)  # the body is not compressed
        # What data a CloudEvent needs follows from its type, which its schema cannot say.
        excluded = [positive_data_acceptance] if operation.path == "/events/cloudevents" else []
        seen.add((operation.label, case.call_and_validate(excluded_checks=excluded).status_code))

    answers()
    return seen
