"""tour.ipynb: it runs from top to bottom, and is stored with what it printed."""
import os

import nbclient
import nbformat
import pytest

from conftest import ROOT

PATH = os.path.join(ROOT, 'tour.ipynb')


def kinds(notebook):
    """The kinds of values and pictures that each cell of code shows."""
    return [sorted(kind for output in cell.outputs for kind in output.get('data', ()))
            for cell in notebook.cells if cell.cell_type == 'code']


def test_tour_is_stored_with_its_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum('image/png' in kind for kind in kinds(notebook)) >= 5
    assert os.path.getsize(PATH) < 2 ** 20


@pytest.mark.exhaustive
def test_tour_runs():
    notebook = nbformat.read(PATH, as_version=4)
    stored = kinds(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}}).execute()
    assert kinds(notebook) == stored
