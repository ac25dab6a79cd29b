"""Each notebook runs from top to bottom on a real scene."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from geoseg.errors import SampleError
from geoseg.samples import fetch

SAYS = {
    "01-first-map": "footprints.geojson",
    "02-how-tiling-works": "0 of 868,780 pixels differ",
    "03-label-a-few-tiles": "houses matched",
    "04-archive-on-dask": "4 scenes, 868,780 valid pixels",
    "05-what-changed": " new ",
    "06-quality": "expected calibration error",
}
"""What the outputs of a notebook have to say."""

FOLDER = Path(__file__).parent.parent / "notebooks"

FUNCTION, CELL = 10, 18
"""Lines at most of a function, and of a cell."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_is_short_enough_to_be_read(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    for source in (cell.source for cell in cells if cell.cell_type == "code"):
        assert len(source.splitlines()) <= CELL, source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION, source


@pytest.mark.network
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs_and_stores_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    try:
        fetch("amsterdam")
        if path.stem in {"03-label-a-few-tiles", "06-quality"}:
            fetch("atlanta")
    except SampleError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any(SAYS[path.stem] in str(cell.outputs) for cell in cells)
