from typing import Any

import pytest

REPORT = pytest.StashKey[list[list[str]]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if rows := config.stash.get(REPORT, []):
        terminalreporter.section("instances behind haproxy")
        for row in rows:
            terminalreporter.line(f"| {' | '.join(row)} |")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[list[str]]:
    """Return the rows of the table that is printed at the end."""
    return request.config.stash.setdefault(REPORT, [])
