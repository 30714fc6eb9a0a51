"""`jittor-lora quickstart`: the full workflow in small: train, score before and after, plot, show answers."""

from __future__ import annotations

import argparse

from jittor_lora.cli.flags import add_flags, given
from jittor_lora.cli.interrupted import resumable
from jittor_lora.settings.run import RunConfig

RECIPE = "quickstart"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "quickstart", help="train and evaluate on the shipped sample, in minutes",
        usage="jittor-lora quickstart [--base B] [--output DIR] [any setting below]",
        description=f"Fine-tune on the shipped SQuAD sample with the recipe {RECIPE!r}, answer questions of held-out "
                    "articles with the base and with the adapter, and show scores, plots and answers. The defaults "
                    "below apply to settings that the recipe does not set.")
    add_flags(parser, RunConfig)


def run(args: argparse.Namespace) -> int:
    config = RunConfig.resolve(RECIPE, given(args, RunConfig))
    from jittor_lora.tasks.quickstart import quickstart
    return resumable(lambda: quickstart(config))
