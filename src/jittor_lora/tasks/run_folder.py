"""The files of a training run, and which folders a run may use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import RECORD_FILE

SETTINGS_FILE, SUMMARY_FILE, CHECKPOINTS, BEST = "config.yaml", "summary.json", "checkpoints", "best"
PRODUCTS = {"lora": "adapter", "full": "model"}  # method → folder in the run's
# In order of removal: if it is interrupted, a run without checkpoints is left.
RUN_FILES = (CHECKPOINTS, SUMMARY_FILE, *PRODUCTS.values(), BEST, "run.log", "train_loss.txt", "val_loss.txt",
             "metrics.jsonl", "tensorboard", "reports", RECORD_FILE, SETTINGS_FILE)
EVALUATION = "evaluation"
MADE_FROM_A_RUN = (EVALUATION, "plots")


def run_files(folder: Path) -> list[str]:
    """Names of a run's files that exist in `folder`."""
    return [name for name in RUN_FILES if os.path.lexists(folder / name)]


def refuse_a_run(folder: Path) -> None:
    """
    Raises:
        UserError: `folder` holds a run.
    """
    found = sorted(run_files(folder))
    if found:
        raise UserError(f"{folder} already holds a run ({', '.join(found[:4])}{', …' if found[4:] else ''}). "
                        "Continue it with --resume, replace it with --overwrite, or name another --output.")


def refuse_links(folder: Path) -> None:
    """
    Raises:
        UserError: a file that a run writes is a link, which may lead anywhere; all are listed.
    """
    links = [f"{name} (to {os.readlink(folder / name)})" for name in (*RUN_FILES, *MADE_FROM_A_RUN)
             if (folder / name).is_symlink()]
    if links:
        raise UserError(f"{folder}: a run writes only inside its folder, and these links may lead out of it: "
                        f"{', '.join(links)}. Put the files themselves there, or make the whole folder a link.")


def remove_run(folder: Path) -> None:
    """Remove a run and everything made from it; other files stay."""
    for name in (*RUN_FILES, *MADE_FROM_A_RUN):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
