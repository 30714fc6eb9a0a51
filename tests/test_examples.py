"""The Python examples of each page of the documentation, run in order beside a tiny base and a few questions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import small_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "adapters.md", ROOT / "README.md"]


def examples(page: Path) -> list[str]:
    """The page's Python blocks that use this package."""
    return [block for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
            if "from jittor_lora import" in block]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_run.make_base(tmp_path / "gpt2")
    small_run.make_squad(tmp_path / "train.json", 6)
    found = examples(page)
    assert found
    for block in found:
        exec(compile(block, str(page), "exec"), {})
    saved = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("adapter_config.json")}
    assert saved >= ({"town", "all/town", "runs/town/adapter"} if page.name == "adapters.md" else {"squad"})
