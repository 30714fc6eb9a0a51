"""`jittor-lora train`: fine-tune a LoRA adapter."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from jittor_lora import recipe
from jittor_lora.cli.options import INTERRUPTED, add_flags, given, require
from jittor_lora.config import OUTPUTS, RunConfig, flag
from jittor_lora.errors import UserError

SETTINGS_FILE = "config.yaml"
RUN_FILES = (SETTINGS_FILE, "run.log", "train_loss.txt", "val_loss.txt", "metrics.jsonl", "summary.json",
             "adapter", "model", "best", "checkpoints", "tensorboard")
MADE_OF_A_RUN = ("evaluation", "plots")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train", help="fine-tune a LoRA adapter",
        usage="jittor-lora train --base B --data FILE [--dev FILE] --output DIR [--config R.yaml] [--resume] "
              "[any setting below]",
        description="Fine-tune a LoRA adapter on question answering or on prompts and completions. A setting on the "
                    "command line goes before the recipe's, the recipe's before the default. \"none\" unsets one.",
        epilog="The run folder holds adapter/ (PEFT's layout), checkpoints, train_loss.txt, val_loss.txt, "
               f"metrics.jsonl, summary.json, and {SETTINGS_FILE}, a recipe of the settings used.")
    parser.add_argument("--config", metavar="R.yaml", help="recipe: a YAML file of settings, or the name of a shipped "
                        f"one ({', '.join(recipe.names())})")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run in --output, "
                       "with its settings")
    again.add_argument("--overwrite", action="store_true", help="remove the run in --output first")
    add_flags(parser, RunConfig, required=("data", "output"))


def run(args: argparse.Namespace) -> int:
    overrides = given(args, RunConfig)
    earlier = _settings_of_run(overrides.get("output")) if args.resume else None
    config = RunConfig.resolve(args.config or earlier, overrides)
    require(config, "data", "output")
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: expected a folder, found a file. Name another path.")
    found = [name for name in RUN_FILES if (folder / name).exists()]
    resume = args.resume and bool(found)
    if args.resume:
        if resume:
            _refuse_changes(config, _settings_of_run(config.output))
        else:
            print(f"{folder} holds no run yet: starting one.", file=sys.stderr)
    elif args.overwrite:
        _remove(folder, [*found, *(name for name in MADE_OF_A_RUN if (folder / name).exists())])
    elif found:
        raise UserError(f"{folder} already holds a run ({', '.join(found[:4])}{', …' if found[4:] else ''}). "
                        "Go on with it with --resume, replace it with --overwrite, or name another --output.")
    from jittor_lora.tasks.train import train
    try:
        if train(config, resume)["ended"] != "interrupted":
            return 0
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
    print("The same command with --resume goes on from the last checkpoint.", file=sys.stderr)
    return INTERRUPTED


def _settings_of_run(output: str | None) -> str | None:
    path = None if output is None else Path(output, SETTINGS_FILE)
    return str(path) if path is not None and path.is_file() else None


def _refuse_changes(config: RunConfig, earlier: str | None) -> None:
    """A run goes on bit for bit, so with the settings it began with; what does not matter for that may change: where
    and how often it writes, and the number of threads."""
    if earlier is None:
        return
    before = RunConfig.resolve(earlier)
    changed = [f"  {name} ({config.origin(name)}): {getattr(before, name)} in the run, now {getattr(config, name)}"
               for name, field in RunConfig.model_fields.items()
               if field.json_schema_extra["group"] != OUTPUTS and name != "threads"
               and getattr(before, name) != getattr(config, name)]
    if changed:
        raise UserError("\n".join([f"{earlier}: --resume goes on with the settings of the run; these differ:", *changed,
                                   f"Leave them out, or start a new run with another {flag('output')}."]))


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
