"""`jittor-lora export`: a model with its adapter merged in, or the adapter alone, for programs other than
transformers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Optional

from jittor_lora.cli.arguments import new_folder
from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.cli.options import ModelOptions, ThreadOptions
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import BasePrecision, base_precision_setting

_SUFFIXES = {"gguf": ".gguf", "gguf-adapter": ".gguf", "npz": ".npz"}  # other formats are folders
_ADAPTERS = ("gguf-adapter", "mlx", "litgpt")


class ExportOptions(ThreadOptions, ModelOptions):
    base_precision: BasePrecision = base_precision_setting("Model")
    format: Literal["gguf", "gguf-adapter", "gguf-ready", "npz", "mlx", "litgpt"] = setting(
        "gguf-ready", "Output", "gguf: a file for llama.cpp and Ollama, the adapter merged in; gguf-adapter: the "
        "adapter alone, for llama.cpp's --lora; gguf-ready: a folder for llama.cpp's convert_hf_to_gguf.py; npz: the "
        "file of base weights for GPT2_LoRA_Jittor; mlx, litgpt: the adapter alone, a folder for mlx-lm or litgpt")
    output: Optional[str] = setting(None, "Output", "the new .gguf or .npz file, or the new folder", holds=PATH,
                                    min_length=1)
    outtype: Optional[Literal["f32", "f16", "bf16", "q8_0", "kept", "requantised"]] = setting(
        None, "Output", "with gguf: the type of matrices. Of a GGUF base, kept leaves what the adapter does not change "
        "as it is in the file and writes the rest as f16, and requantised rounds the rest to its type in the file; by "
        "default kept for a GGUF base, else f16")
    ollama: bool = setting(False, "Output", "with gguf and gguf-adapter: the output is a folder, with a Modelfile for "
                           "Ollama that has the template of training")
    tolerance: float = setting(1e-3, "Output", "maximum difference of a logit between base with adapter and exported "
                               "model, both in float32; above it nothing is written", gt=0)

    def conflicts(self) -> Iterator[Problem]:
        if self.outtype is not None and self.format != "gguf":
            yield Problem(("outtype", "format"), "has no effect without --format gguf; leave it out")
        if self.outtype in ("kept", "requantised") and self.base_precision not in ("auto", "fp32"):
            yield Problem(("outtype", "base_precision"), "names the types of the base's file, which the base is not "
                          "kept in; leave out one of the two")
        if self.ollama and self.format not in ("gguf", "gguf-adapter"):
            yield Problem(("ollama", "format"), "needs a GGUF file; give --format gguf or gguf-adapter")
        if self.format in _ADAPTERS and self.adapter is None:
            yield Problem(("adapter", "format"), f"required by --format {self.format}; give --adapter")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "export", help="save a model or an adapter for llama.cpp, Ollama, mlx-lm, litgpt or GPT2_LoRA_Jittor",
        usage="jittor-lora export [--base B] [--adapter DIR] --output PATH [--format F] [any flag below]",
        description="Write a whole model for other programs, with the adapter merged in if one is given, or the "
                    "adapter alone. For transformers use `merge`; to convert an adapter to PEFT's layout, `adapter "
                    "convert`.")
    add_flags(parser, ExportOptions, required=("output",))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, ExportOptions)
    require(options, "output")
    output = Path(options.output)
    if options.ollama or options.format not in _SUFFIXES:
        new_folder("--output", output)
    else:
        _new_file(output, _SUFFIXES[options.format])
    base, adapter = options.base_and_adapter()
    options.set_threads()
    for line in _export(options, base, adapter, output):
        print(line)
    return 0


def _export(options: ExportOptions, base, adapter, output: Path) -> list[str]:
    """
    Returns: sentences on what was written.
    """
    if options.format in ("gguf", "gguf-adapter"):
        from jittor_lora.tasks.export_gguf import export_gguf
        return export_gguf(options.format, base, adapter, output, options.outtype, options.ollama, options.tolerance,
                           options.base_precision)
    if options.format in _ADAPTERS:
        from jittor_lora.tasks.export_adapter import export_adapter
        return [f"{output}: {export_adapter(options.format, base, adapter, output)} adapted modules."]
    from jittor_lora.tasks.export import export
    difference = export(options.format, base, adapter, output, options.tolerance, options.base_precision)
    return [f"{output}: exported" + ("." if difference is None else f"; largest logit difference {difference:.2e}.")]


def _new_file(output: Path, suffix: str) -> None:
    if output.suffix.lower() != suffix or output.exists():
        raise UserError(f"--output {output}: expected a name that ends in {suffix}"
                        f"{', found an existing file' if output.exists() else ''}.")
