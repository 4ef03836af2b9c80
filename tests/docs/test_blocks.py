"""Every code block of the documentation does what its page says."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.blocks import EMULATOR_PORT, BlockFailed, Page, read_blocks, uses_emulator

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "deploy", "examples")


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
    return sorted(page for page in found if not any(part[0] in "._" for part in page.relative_to(ROOT).parts))


def parameters():
    for path in pages():
        name = str(path.relative_to(ROOT))
        try:
            marks = [pytest.mark.emulator] if uses_emulator(read_blocks(path, name)) else []
        except BlockFailed:
            marks = []  # the test fails with it
        yield pytest.param(path, name, id=name, marks=marks)


def run(path: Path, name: str, tmp_path: Path) -> Page:
    folder, state = tmp_path / "folder", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    page = Page(state, folder)
    if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
        page.ports[EMULATOR_PORT] = urlsplit(f"//{host}").port or EMULATOR_PORT
    page.run(read_blocks(path, name))
    return page


@pytest.mark.parametrize(("path", "name"), list(parameters()))
def test_page(path, name, tmp_path, monkeypatch):
    """Its commands and programs run, its files parse, and they print what the page says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run(path, name, tmp_path)


WRONG = {
    "command fails": ("```sh\nfalse\n```", "page.md:1: ended with status 1, not 0"),
    "command fails in a pipe": ("```sh\nfalse | cat\n```", "page.md:1: ended with status 1, not 0"),
    "first command fails": ("Text.\n\n```sh\nfalse\ntrue\n```", "page.md:3: ended with status 1, not 0"),
    "command does not fail": ("<!-- exit: 2 -->\n```sh\ntrue\n```", "page.md:2: ended with status 0, not 2"),
    "program fails": ("```python\nraise ValueError(5)\n```", "page.md:1: ended with status 1, not 0:\n.*ValueError: 5"),
    "program warns": ("```python\nimport warnings\nwarnings.warn('old')\n```", "page.md:1: .*UserWarning: old"),
    "other output": ("```sh\necho a\n```\n<!-- output -->\n```text\nb\n```", "page.md:5: the output is different:\na"),
    "other JSON": ('```sh\necho "{}"\n```\n<!-- output -->\n```json\n{"a": 1}\n```', "page.md:5: the output is diff"),
    "output of nothing": ("<!-- output -->\n```text\nb\n```", "page.md:2: no block before this output has run"),
    "no language": ("```\ntrue\n```", "page.md:1: no language is not one of console,"),
    "other language": ("```bash\ntrue\n```", "page.md:1: bash is not one of"),
    "no end": ("```sh\ntrue\n", "page.md:1: the block has no end"),
    "no JSON": ("```json\n{,}\n```", "page.md:1: this is no json"),
    "no TOML": ("```toml\na = \n```", "page.md:1: this is no toml"),
    "no YAML": ("```yaml\na: [\n```", "page.md:1: this is no yaml"),
    "unknown comment": ("<!-- fiel: a -->\n```sh\ntrue\n```", "page.md:2: unknown comment <!-- fiel: a -->"),
    "no reason": ("<!-- not run -->\n```sh\ntrue\n```", "page.md:2: the comment 'not run' needs a value"),
    "background ends": ("<!-- background -->\n```sh\npulsecart serve --x\n```", "page.md:2: ended with status 2:.*--x"),
    "service is gone": ("```sh\ncurl localhost:8000/livez\n```", "page.md:1: ended with status 7, not 0"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_page_fails(text, expected, tmp_path):
    """The failure names the page, the line of the block, and what is wrong."""
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(BlockFailed, match=f"(?s)^{expected}"):
        run(path, "page.md", tmp_path)


RIGHT = """\
# A page

<!-- file: shop/orders.ndjson -->
```json
{"event_type": "order.placed", "user_id": "user-1", "order_id": "order-1", "payload": {}}
```

```sh
cd shop
export FILE=orders.ndjson
```

:::{note}
The service runs until the next one takes its port.
:::

<!-- background -->
```sh
PULSECART_LOG_LEVEL=info pulsecart serve
```

<!-- output -->
```text
...Uvicorn running on http://127.0.0.1:8000...
```

<!-- background -->
```sh
pulsecart serve --port 8000
```

```sh
curl localhost:8000/events/ingest -H 'Content-Type: application/json' -d @$FILE
```

<!-- output -->
```json
{
  "status": "accepted",
  "event_id": "evt_01a208d02d4708440c6fe7ff04e1d3bb",
  "message_id": "1",
  "trace_id": "..."
}
```

<!-- not run: it would end the shell -->
```sh
exit 1
```

<!-- exit: 2 -->
```sh
pulsecart --nonsense
```

```python
import os, pathlib
print(os.environ["FILE"], pathlib.Path.cwd().name, sorted(each.name for each in pathlib.Path.cwd().iterdir()))
```

<!-- output -->
```text
orders.ndjson shop ['orders.ndjson']
```
"""


def test_right_page_passes(tmp_path):
    """Files, the working directory, variables, services, output and statuses are as the page says. All has ended."""
    path = tmp_path / "page.md"
    path.write_text(RIGHT)
    page = run(path, "page.md", tmp_path)
    assert all(background.process.poll() is not None for background in page.backgrounds)
    assert len(page.backgrounds) == 1
