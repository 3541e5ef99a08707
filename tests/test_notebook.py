"""The notebook of the documents, executed from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.usefixtures("uncovered")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "recommendations.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [([], None)] * len(cells) == [(cell.outputs, cell.execution_count) for cell in cells]


def test_it_goes_from_data_to_recommendations(notebook: nbformat.NotebookNode) -> None:
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "towers - popularity: +" in text
    assert "Default: " in text
    titles = [line for line in text.splitlines() if line.endswith(")") and line.startswith("  ")]
    assert 15 == len(titles)
    assert ["image/png"] == [
        kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image")
    ]
    assert outputs[-1]["data"]["text/plain"] == "0"  # the server stopped cleanly
