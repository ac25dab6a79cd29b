"""Each notebook runs from top to bottom on a real scene."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from geoseg.errors import SampleError
from geoseg.samples import fetch

FOLDER = Path(__file__).parent.parent / "notebooks"


@pytest.mark.network
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs_and_stores_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    try:
        fetch("amsterdam")
    except SampleError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any("footprints.geojson" in str(cell.outputs) for cell in cells)
