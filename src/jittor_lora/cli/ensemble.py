"""The flag `--ensemble`: further adapters that answer together with that of `--adapter`."""

from __future__ import annotations

import argparse

from jittor_lora.cli.arguments import find_adapter, path_argument
from jittor_lora.cli.options import ModelOptions
from jittor_lora.errors import UserError


def add_ensemble(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ensemble", metavar="DIR", nargs="+", default=[], type=path_argument,
                        help="further adapters of the same base, which answer together with that of --adapter: each "
                        "token by the mean of their probabilities")


def further_adapters(args: argparse.Namespace, options: ModelOptions) -> list:
    """The further adapters, each an `AdapterSource`.

    Raises:
        UserError: there is no first one, or some were not found or cannot be read.
    """
    if args.ensemble and options.adapter is None:
        raise UserError("--ensemble: expected further adapters beside that of --adapter; give --adapter DIR too.")
    from jittor_lora.formats.adapter_source import open_adapter
    return [open_adapter(find_adapter(str(path), "--ensemble ")) for path in args.ensemble]
