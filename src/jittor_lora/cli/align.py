"""`jittor-lora align`: the same training here and in PyTorch, compared number by number."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jittor_lora.cli.flags import add_flags, given, require
from jittor_lora.cli.interrupted import resumable
from jittor_lora.settings import recipe
from jittor_lora.settings.align import AlignConfig
from jittor_lora.settings.text import home_expanded
from jittor_lora.system.locks import locked


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "align", help="train the same adapter here and in PyTorch, and compare the two number by number",
        usage="jittor-lora align --base B --data FILE [--dev FILE] --output DIR [--steps N] [any setting below]",
        description="Train the same adapter on the same batches here and in transformers with PEFT, in float32, and "
                    "compare weights, activations, losses, gradients, updates, logits and answers. Exit code 1 if a "
                    "difference exceeds its tolerance. The same command resumes where it stopped.",
        epilog="The output folder holds the report, inputs/, both sides' records and logs in jittor/ and pytorch/, and "
               "pytorch_twin.py, the PyTorch side, which runs by itself.")
    parser.add_argument("--config", metavar="R.yaml", type=home_expanded,
                        help="recipe: a YAML file of settings, or the name of a shipped one "
                        f"({', '.join(recipe.names())})")
    parser.add_argument("--overwrite", action="store_true", help="replace an alignment with other settings in --output")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--twin", metavar="SCRIPT", type=home_expanded,
                       help="run this script as the PyTorch side, such as a changed copy of pytorch_twin.py")
    other.add_argument("--with", metavar="TRAIN_LOG", type=home_expanded, dest="log",
                       help="run no PyTorch: lay the log of a run of your own over ours, in any format that plot reads")
    parser.add_argument("--python", metavar="PYTHON", type=home_expanded, default=sys.executable,
                        help="Python with torch, transformers and peft (default: this one)")
    add_flags(parser, AlignConfig, required=("data", "output"), without=AlignConfig.unused)


def run(args: argparse.Namespace) -> int:
    config = AlignConfig.resolve(args.config, given(args, AlignConfig))
    require(config, "data", "output")
    with locked(config.output):
        return resumable(lambda: _compared(config, args))


def _compared(config: AlignConfig, args: argparse.Namespace) -> int:
    from jittor_lora.alignment.report_files import PAGE
    from jittor_lora.alignment.report_text import lines_for_terminal
    from jittor_lora.alignment.run import align, lay_over
    if args.log is None:
        found = align(config, args.twin and Path(args.twin), args.python, args.overwrite)
    else:
        found = lay_over(config, Path(args.log), args.overwrite)
    print("\n".join(lines_for_terminal(found)))
    print(f"Report: {Path(config.output) / PAGE}")
    return 0 if found.agrees else 1
