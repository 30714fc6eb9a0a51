"""`jittor-lora export`: a model with its adapter merged in, or the adapter alone, for programs other than
transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, Optional

from jittor_lora.cli.arguments import new_folder
from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.cli.options import ModelOptions, ThreadOptions
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, setting


class ExportOptions(ThreadOptions, ModelOptions):
    format: Literal["gguf-ready", "npz", "mlx", "litgpt"] = setting(
        "gguf-ready", "Output", "gguf-ready: a folder for llama.cpp's convert_hf_to_gguf.py; npz: the file of base "
        "weights for GPT2_LoRA_Jittor; mlx, litgpt: the adapter alone, a folder for mlx-lm or litgpt")
    output: Optional[str] = setting(None, "Output", "the new folder, or the new .npz file", holds=PATH, min_length=1)
    tolerance: float = setting(1e-3, "Output", "maximum difference of a logit between base with adapter and exported "
                               "model; above it nothing is written", gt=0)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "export", help="save a model or an adapter for llama.cpp, mlx-lm, litgpt or GPT2_LoRA_Jittor",
        usage="jittor-lora export [--base B] [--adapter DIR] --output PATH "
              "[--format gguf-ready|npz|mlx|litgpt] [--tolerance X]",
        description="Write a whole model for other programs, with the adapter merged in if one is given, or the "
                    "adapter alone. For transformers use `merge`; to convert an adapter to PEFT's layout, `adapter "
                    "convert`.")
    add_flags(parser, ExportOptions, required=("output",))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, ExportOptions)
    require(options, "output")
    output = Path(options.output)
    if options.format == "npz" and (output.suffix.lower() != ".npz" or output.exists()):
        raise UserError(f"--output {output}: expected a name that ends in .npz"
                        f"{', found an existing file' if output.exists() else ''}.")
    if options.format != "npz":
        new_folder("--output", output)
    base, adapter = options.base_and_adapter()
    options.set_threads()
    if options.format in ("mlx", "litgpt"):
        from jittor_lora.tasks.export_adapter import export_adapter
        print(f"{output}: {export_adapter(options.format, base, adapter, output)} adapted modules.")
        return 0
    from jittor_lora.tasks.export import export
    difference = export(options.format, base, adapter, output, options.tolerance)
    print(f"{output}: exported" + ("." if difference is None else
                                   f"; largest logit difference {difference:.2e}."))
    return 0
