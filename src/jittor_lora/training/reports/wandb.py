"""Weights & Biases. Its own settings apply: `WANDB_MODE` (online, offline, disabled), `WANDB_API_KEY`, …

Files of the offline mode are in `reports/wandb/` of the run folder; `wandb sync` sends them later.
"""

from __future__ import annotations

from collections.abc import Mapping

from jittor_lora.training.reports import Run
from jittor_lora.training.reports.run_id import run_id

PROJECT = "jittor-lora"


def start(run: Run) -> WandB:
    return WandB(run)


class WandB:
    """A run at Weights & Biases, continued by its id if it exists. Steps that it has already are ignored there; a
    resumed run repeats them bit for bit."""

    def __init__(self, run: Run):
        import wandb
        self._run = wandb.init(
            project=PROJECT, name=run.folder.name, id=run_id(run.reports, "wandb"), resume="allow",
            dir=str(run.reports), config=dict(run.settings), settings=wandb.Settings(console="off"))

    def row(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sync(self) -> None:
        pass  # by its own process

    def close(self) -> None:
        self._run.finish()
