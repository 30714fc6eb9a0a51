"""The notebooks: both languages have the same code and no outputs, and every cell runs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from needs import needs_index, needs_notebooks, needs_sklearn

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
ENGLISH = [path for path in NOTEBOOKS if not path.stem.endswith(".zh-CN")]
SMALL = {
    "quickstart": 'BASE = "smollm2-135m"\nQUESTIONS = 8\nSCORED = 4\nOUTPUT = "runs/notebook"\n',
    "any_module": 'BASE_STEPS = 4\nSTEPS = 4\nOUTPUT = "runs/unet"\n',
}


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_there_are_two_in_two_languages():
    assert [path.name for path in NOTEBOOKS] == ["any_module.ipynb", "any_module.zh-CN.ipynb", "quickstart.ipynb",
                                                 "quickstart.zh-CN.ipynb"]


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_both_languages_have_the_same_code(path):
    chinese = path.with_suffix(".zh-CN.ipynb")
    assert cells(path, "code") == cells(chinese, "code")
    ours, theirs = ([bool(re.search("[一-鿿]", "".join(cell["source"]).replace("[中文]", "")))
                     for cell in cells(page, "markdown")] for page in (path, chinese))
    assert len(ours) == len(theirs) and not any(ours) and all(theirs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_committed(path):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path, "code"))


@pytest.mark.slow
@needs_notebooks
@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=needs_index if path.stem.startswith("quickstart") else needs_sklearn)
    for path in NOTEBOOKS])
def test_every_cell_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(parameters) == 1
    names = [line.split(" = ")[0] for line in parameters[0].source.splitlines()]
    parameters[0].source = SMALL[path.name.partition(".")[0]]
    assert names == [line.split(" = ")[0] for line in parameters[0].source.splitlines()]
    # A cell that raises ends this with its traceback.
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" for output in outputs)
    pictures = sum("image/png" in output.get("data", ()) for output in outputs)
    assert pictures == (1 if path.stem.startswith("quickstart") else 4)
    assert sorted(tmp_path.rglob("adapter_model.safetensors"))
