"""`jittor-lora bundle`: a folder to carry to a machine without a network."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

from pydantic import AfterValidator

from jittor_lora.cli.arguments import new_folder
from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.settings.base import PATH, Settings, setting

PYTHONS = ("3.9", "3.10", "3.11", "3.12")
HERE = f"3.{sys.version_info.minor}"
_PLATFORM = re.compile(r"manylinux(2014|_2_(1[7-9]|[2-9]\d))_(x86_64|aarch64)")


def _platform(text: str) -> str:
    if not _PLATFORM.fullmatch(text):
        raise ValueError(f"expected manylinux2014_x86_64, or another manylinux tag for x86_64 or aarch64; found {text}")
    return text


class BundleOptions(Settings):
    """What goes into the bundle, and for which machine."""

    base: Optional[str] = setting(None, "Contents", "base model: a folder, a named base (gpt2, smollm2-135m), a Hub "
                                  "id, or auto", holds=PATH, min_length=1)
    data: Optional[str] = setting(None, "Contents", "training data: a file, or a named data set such as sample-train",
                                  holds=PATH, min_length=1)
    dev: Optional[str] = setting(None, "Contents", "validation data; by default none", holds=PATH, min_length=1)
    output: Optional[str] = setting(None, "Contents", "the new folder", holds=PATH, min_length=1)
    platform: Annotated[str, AfterValidator(_platform)] = setting(
        "manylinux2014_x86_64", "Machine", "pip's tag of its platform; manylinux2014 runs wherever glibc is 2.17 or "
        "newer")
    python: Literal["3.9", "3.10", "3.11", "3.12"] = setting(
        HERE if HERE in PYTHONS else "3.11", "Machine", "its version of Python")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "bundle", help="a folder to carry to a machine without a network",
        usage="jittor-lora bundle --base B --data FILE [--dev FILE] --output DIR [--platform TAG] [--python 3.N]",
        description="Gather packages, base and data in a folder with a script that installs them on a machine without "
                    "a network. Here the package index must be reachable, there nothing.")
    add_flags(parser, BundleOptions, required=("base", "data", "output"))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, BundleOptions)
    require(options, "base", "data", "output")
    output = new_folder("--output", Path(options.output))
    from jittor_lora.tasks.bundle import bundle
    from jittor_lora.tasks.bundle_wheels import Target
    made = bundle(options.base, options.data, options.dev, output, Target(options.platform, options.python))
    print(f"{made.folder}: {made.size / 2**20:,.0f} MiB. Copy it to a machine with Python {options.python} and g++; "
          f"there, in the folder:\n  ./install.sh\n  {made.train}")
    return 0
