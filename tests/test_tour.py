"""The notebook of docs/ runs from top to bottom in a fresh kernel, and gets where it says."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the extra 'dev' is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra 'dev' is not installed")
pytest.importorskip("ipykernel", reason="the extra 'dev' is not installed")

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"

# Run in the notebook's own kernel, after its last cell.
CHECKS = """
assert np.unique(w_hat).size == 2
assert (np.asarray(gradient) == 3).all() and (np.asarray(naive) < 3).all()
assert train_step._cache_size() == 1
assert result["n"] == 360 and result["error"] < 5, result
assert (np.asarray(predictions) == np.asarray(flax_predictions)).all()
assert size < 4 * weights / 10
assert set(errors) == {"1bit", "32bit"} and max(errors.values()) < 50, errors
"""


def test_tour(tmp_path, monkeypatch, own_cache):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it, jupyter_core warns
    notebook = nbformat.read(TOUR, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    figures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) == 5
    said = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in said if output.get("name") == "stderr"]


def test_committed_outputs_are_small_and_name_no_machine():
    text = TOUR.read_text()
    assert len(text) < 300_000
    assert "/home/" not in text and "/tmp" not in text and "site-packages" not in text
