"""`jittor-lora merge`: a base with its adapter merged in, as one model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional

from jittor_lora.cli.arguments import new_folder
from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.cli.options import ModelOptions, ThreadOptions
from jittor_lora.settings.base import PATH, setting
from jittor_lora.settings.shared import BasePrecision, base_precision_setting


class MergeOptions(ThreadOptions, ModelOptions):
    base_precision: BasePrecision = base_precision_setting("Model")
    output: Optional[str] = setting(None, "Output", "folder for the merged model, in Hugging Face's layout",
                                    holds=PATH, min_length=1)
    tolerance: float = setting(1e-3, "Output", "maximum difference of a logit between base with adapter and merged "
                               "model; above it nothing is written", gt=0)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "merge", help="merge an adapter into its base and save the whole model",
        usage="jittor-lora merge --base B --adapter DIR --output DIR [--tolerance X]",
        description="Add the adapter's update to the weights of the base and save a model that needs no adapter, in "
                    "Hugging Face's layout. The largest logit difference is measured and printed.")
    add_flags(parser, MergeOptions, required=("adapter", "output"))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, MergeOptions)
    require(options, "adapter", "output")
    output = new_folder("--output", Path(options.output))
    base, adapter = options.base_and_adapter()
    options.set_threads()
    from jittor_lora.tasks.merge import merge
    difference = merge(base, adapter, output, options.tolerance, options.base_precision)
    print(f"{output}: merged; largest logit difference {difference:.2e}.")
    return 0
