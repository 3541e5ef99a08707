"""The Python that the documentation shows runs as it stands, but for the server's address."""

import re
from pathlib import Path

import pytest

from tests.server.conftest import RunningServer

ROOT = Path(__file__).parent.parent.parent
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_the_client_as_it_is_shown(
    page: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (shown,) = _PYTHON.findall((ROOT / page).read_text())
    exec(shown.replace("localhost:50051", server.address), {})
    printed = capsys.readouterr().out
    assert 10 < len(printed.splitlines())
    assert "_UNKNOWN" in printed  # of the refusal at the end
