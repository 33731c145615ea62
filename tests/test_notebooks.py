"""Every notebook that ships runs from top to bottom, and its .ipynb is its .py without outputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))


#: The first runs with every change, the others take seconds.
PACED = [path if path.stem.startswith("01") else pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", PACED, ids=lambda p: p.stem)
def test_a_notebook_runs(path):
    with warnings.catch_warnings():
        # Jupyter's own packages warn about each other's ages.
        warnings.simplefilter("ignore")
        from nbclient import NotebookClient

        notebook = jupytext.read(path)
        NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs), "it shows a plot"
    assert not [out for out in outputs if out.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_and_its_pair_hold_the_same_cells(path):
    pair = jupytext.read(path.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in pair.cells] == [(c.cell_type, c.source) for c in jupytext.read(path).cells]
    assert not any(cell.get("outputs") for cell in pair.cells), "outputs are not committed"


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3
