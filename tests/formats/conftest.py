from __future__ import annotations

import pytest

import model_files


@pytest.fixture(params=["gpt2", "llama"])
def config(request) -> dict:
    """A config.json."""
    return dict({"gpt2": model_files.GPT2, "llama": model_files.LLAMA}[request.param])
