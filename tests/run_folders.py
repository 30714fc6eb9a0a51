"""Run folders as training leaves them, in a moment and without a model."""

from __future__ import annotations

import json
from pathlib import Path

from jittor_lora.settings.run import RunConfig
from jittor_lora.training.log import RunLog


def make_run(folder: Path, steps: int, total: int | None = None, ended: str | None = "finished",
             validate_every: int = 10, first: int = 1) -> Path:
    """The logs of a run from step `first` to `steps`, with a summary if it `ended`."""
    total = total or steps
    with RunLog(folder, total, quiet=True) as log:
        if first == 1:
            log.config(RunConfig(data="sample-train", dev="sample-dev", output="runs/it", base="tiny").recipe())
            log.message(f"Steps: {total:,}. The first one takes longer where Jittor still compiles operators.")
        for step in range(first, steps + 1):
            log.step(step, loss=loss(step), learning_rate=1e-3 * (1 - step / total), grad_norm=1.0, tokens=100,
                     questions=4, seconds=0.5)
            if step % validate_every == 0:
                log.validation(step, loss=loss(step) + 0.25, exact_match=10.0, f1=20.0)
        if ended:
            log.summary({"ended": ended, "base": "tiny-base", "steps": steps, "total_steps": total})
    return folder


def loss(step: int) -> float:
    return 1 + 2 / step


def make_scores(folder: Path, name: str, answers: dict[str, str], references: list[str], exact_match: float) -> None:
    """metrics.json and questions.jsonl in `folder`/evaluation/`name`."""
    own = folder / "evaluation" / name
    own.mkdir(parents=True)
    (own / "metrics.json").write_text(json.dumps(
        {"exact_match": exact_match, "f1": exact_match, "count": len(answers), "missing": 0,
         "exact_match_interval": [0.0, 100.0], "f1_interval": [10.0, 90.0], "unit": "paragraph", "units": 2,
         "scoring": "squad"}))
    (own / "questions.jsonl").write_text("".join(
        json.dumps({"id": key, "prediction": text, "exact_match": 0.0, "f1": 0.5, "references": references}) + "\n"
        for key, text in answers.items()))
