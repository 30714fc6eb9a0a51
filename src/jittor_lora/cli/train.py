"""`jittor-lora train`: fine-tune a LoRA adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jittor_lora.cli.flags import add_flags, given, require
from jittor_lora.cli.interrupted import exit_code
from jittor_lora.cli.output import json_text
from jittor_lora.errors import UserError
from jittor_lora.settings import recipe
from jittor_lora.settings.reports import require_packages
from jittor_lora.settings.run import RunConfig
from jittor_lora.settings.text import flag, home_expanded
from jittor_lora.system import job
from jittor_lora.system.locks import locked
from jittor_lora.tasks.run_folder import SETTINGS_FILE, refuse_a_run, remove_run, run_files


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train", help="fine-tune a LoRA adapter",
        usage="jittor-lora train --base B --data FILE [--dev FILE] --output DIR [--config R.yaml] [--resume] "
              "[any setting below]",
        description="Fine-tune a LoRA adapter on conversations, on prompts and completions, or on questions about a "
                    "context. Flags override the recipe, and the recipe the defaults. \"none\" unsets a setting.",
        epilog="The run folder holds adapter/ (PEFT's layout), checkpoints, train_loss.txt, val_loss.txt, "
               f"metrics.jsonl, summary.json, and {SETTINGS_FILE}, a recipe of the settings used.")
    parser.add_argument("--config", metavar="R.yaml", type=home_expanded,
                        help="recipe: a YAML file of settings, or the name of a shipped one "
                        f"({', '.join(recipe.names())})")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="resume from the newest checkpoint of the run in "
                       "--output, with its settings")
    again.add_argument("--overwrite", action="store_true", help="remove an existing run in --output first")
    again.add_argument("--plan", action="store_true", help="train nothing: measure a few steps on this machine, and "
                       "show whether the run fits and how long it will take; needs no --output")
    parser.add_argument("--json", action="store_true", help="with --plan: print the plan as JSON")
    add_flags(parser, RunConfig, required=("data", "output"))


def run(args: argparse.Namespace) -> int:
    if args.plan:
        return _plan(args)
    if args.json:
        raise UserError("--json: prints a plan; give --plan too, or leave this out.")
    config, resume = _begin_alike(args) if job.current().several else _begin(args)
    from jittor_lora.tasks.train import train
    try:
        ended = train(config, resume)
        if ended["ended"] != "interrupted":
            return 0
        code = 128 + ended["signal"]
    except KeyboardInterrupt as stop:
        print("\nInterrupted.", file=sys.stderr)
        code = exit_code(stop)
    print("To continue from the last checkpoint, run the same command with --resume.", file=sys.stderr)
    return code


def _plan(args: argparse.Namespace) -> int:
    """Print what the run would take. Returns 0 if it fits, else 1."""
    if job.current().several:
        raise UserError("--plan: measures one process; run it without mpirun.")
    config = RunConfig.resolve(args.config, given(args, RunConfig))
    require(config, "data")
    require_packages(config.report_to)
    from jittor_lora.tasks import plan_report
    from jittor_lora.tasks.plan import plan
    found = plan(config)
    print(json_text(plan_report.to_json(found), indent=2) if args.json else plan_report.table(found))
    return 0 if found.fits else 1


def _begin_alike(args: argparse.Namespace) -> tuple[RunConfig, bool]:
    """The result of `_begin` on the first of several ranks, the only one that needs the run folder and the recipe."""
    own = None
    if job.current().rank == 0:
        config, resume = _begin(args)
        own = [config.model_dump(), {name: config.origin(name) for name in RunConfig.model_fields}, resume]
    from jittor_lora.system.ranks import join
    values, origins, resume = join().broadcast(own)
    return RunConfig.resolve(None, values, origins), resume


def _begin(args: argparse.Namespace) -> tuple[RunConfig, bool]:
    """Prepare the run folder. Returns the settings, and whether to resume the run in it.

    Raises:
        UserError: wrong settings, or an existing run in the way.
    """
    overrides = given(args, RunConfig)
    earlier = _settings_of_run(overrides.get("output")) if args.resume else None
    config = RunConfig.resolve(args.config or earlier, overrides)
    require(config, "data", "output")
    require_packages(config.report_to)  # before an old run is removed
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: expected a folder, found a file. Name another path.")
    resume = args.resume and bool(run_files(folder))
    if args.resume:
        if resume:
            _refuse_changes(config, _settings_of_run(config.output))
        else:
            print(f"{folder} contains no run yet: starting one.", file=sys.stderr)
    elif args.overwrite:
        with locked(folder):
            remove_run(folder)
    else:
        refuse_a_run(folder)
    return config, resume


def _settings_of_run(output: str | None) -> str | None:
    path = None if output is None else Path(home_expanded(output), SETTINGS_FILE)
    return str(path) if path is not None and path.is_file() else None


def _refuse_changes(config: RunConfig, earlier: str | None) -> None:
    """A resumed run is bit for bit the uninterrupted one, so its settings have to be the same."""
    changed = config.differences(RunConfig.resolve(earlier)) if earlier is not None else []
    if changed:
        lines = [f"{earlier}: --resume keeps the settings of the run; these differ:", *changed]
        raise UserError("\n  ".join(lines) + f"\nLeave them out, or start a new run with another {flag('output')}.")
