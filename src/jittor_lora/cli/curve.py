"""`jittor-lora curve`: scores against the number of training examples, the rank, or the seed."""

from __future__ import annotations

import argparse

from jittor_lora.cli.flags import add_flags, given, require
from jittor_lora.cli.interrupted import resumable
from jittor_lora.settings import recipe
from jittor_lora.settings.curve import CurveConfig
from jittor_lora.settings.text import home_expanded
from jittor_lora.system.locks import locked


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "curve", help="plot scores against the number of training examples, the rank, or the seed",
        usage="jittor-lora curve --data FILE --dev FILE --output DIR [--over examples|rank|seed] "
              "[--points N,N,…] [--config R.yaml] [any setting below]",
        description="Train one run per number of examples, rank or seed, score all on the same questions, and plot the "
                    "scores; over seeds, also their mean and standard deviation. Finished runs are kept: the same "
                    "command resumes where it stopped.")
    parser.add_argument("--config", metavar="R.yaml", type=home_expanded,
                        help="recipe: a YAML file of settings, or the name of a shipped one "
                        f"({', '.join(recipe.names())})")
    add_flags(parser, CurveConfig, required=("data", "dev", "output"))


def run(args: argparse.Namespace) -> int:
    config = CurveConfig.resolve(args.config, given(args, CurveConfig))
    require(config, "data", "dev", "output")
    from jittor_lora.tasks.curve import curve
    with locked(config.output):
        return resumable(lambda: curve(config))
