from collections.abc import Iterator
from pathlib import Path

import pytest

from pulsecart.testing import StrictPubsub
from tests.google_login import new_key, service_account
from tests.strict_server import on_a_thread


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("login") / "key.json"
    file.write_text(service_account(new_key()))
    return file


@pytest.fixture
def cloud(monkeypatch, key_file) -> Iterator[StrictPubsub]:
    """Google Cloud, as far as the settings say."""
    with on_a_thread() as server:
        monkeypatch.setenv("PULSECART_TRANSPORT", "pubsub")
        monkeypatch.setenv("GCP_PROJECT_ID", "test")
        monkeypatch.setenv("PULSECART_ENDPOINT", server.host)
        monkeypatch.setenv("PULSECART_CA_FILE", server.roots_file)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
        yield server
