"""Requests made up from the description of the API: what is answered is what it says, and never 500."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jittor_lora.serving.settings import ServeSettings
from needs import needs_schemathesis
from serving import served

pytestmark = [needs_schemathesis, pytest.mark.slow]
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# Right requests may be refused for what a schema cannot say: a prompt too long, two fields of which one must go
LEFT_OUT = "positive_data_acceptance"


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_description_is_true(served_files, tmp_path, mode):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOOKS.parent), os.environ.get("PYTHONPATH", "")])}
    if mode == "positive":
        environment["SCHEMATHESIS_HOOKS"] = HOOKS.stem
    settings = ServeSettings(adapter_folders=(served_files / "adapters",))
    with served.running(served_files, settings) as server:
        run = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", "all",
             "--exclude-checks", LEFT_OUT, "--mode", mode, "--phases", "coverage,fuzzing", "--max-examples", "40",
             "--seed", "1", "--generation-database", "none", "--request-timeout", "30", "--no-color",
             "--include-path-regex", "^/v1"], env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=550)
        assert run.returncode == 0, run.stdout
        assert "500 Internal" not in run.stdout and "Tested: 7" in run.stdout
        assert server.service.engine.statistics().failed == 0
        answer = server.answer("/v1/completions", model="one", prompt="The town", max_tokens=2)
        assert answer["choices"][0]["text"]
