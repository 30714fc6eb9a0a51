"""`jittor-lora adapter`: adapters as files, without a base: list, info, diff, combine, convert."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Callable, Sequence

from jittor_lora.cli.arguments import find_adapter, new_folder, path_argument
from jittor_lora.cli.output import json_text
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import may_be_adapter
from jittor_lora.lora.combination import MAJORITY, METHODS, Combination
from jittor_lora.settings.text import home_expanded

ACTIONS = ("list", "info", "diff", "combine", "convert")
QUANTITIES = {"frobenius": "Frobenius norm of ΔW", "spectral": "spectral norm of ΔW",
              "effective_rank": "effective rank of ΔW"}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "adapter", help="list, measure, compare, combine and convert adapters",
        usage="jittor-lora adapter list|info|diff|combine|convert …",
        description="Work on adapters as files. No base model is needed.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", prog="jittor-lora adapter")

    listing = actions.add_parser(
        "list", help="list the adapters in a folder", usage="jittor-lora adapter list [FOLDER] [--json]",
        description="Find all adapters below a folder: base, rank, alpha, targets, trained parameters, size.")
    listing.add_argument("folder", metavar="FOLDER", nargs="?", type=path_argument, default=Path("."),
                         help="folder to search (default: the current one)")
    _add_json(listing)

    info = actions.add_parser(
        "info", help="show settings, and norm and effective rank of each update",
        usage="jittor-lora adapter info DIR [--base B] [--json] [--heat-map FILE.png [--quantity NAME]]",
        description="Show an adapter's settings and, for each adapted module, the Frobenius and spectral norm of "
                    "ΔW = scaling · B A and its effective rank, exp(−Σ p ln p) with p the singular values divided by "
                    "their sum (Roy & Vetterli 2007). They are computed from A and B; ΔW is never formed.")
    info.add_argument("adapter", metavar="DIR", type=home_expanded,
                      help="adapter folder of PEFT, mlx-lm or litgpt, a GGUF adapter, or a run folder")
    info.add_argument("--base", metavar="B", type=home_expanded,
                      help="base model, without which adapters of litgpt and llama.cpp cannot be read")
    _add_json(info)
    info.add_argument("--heat-map", metavar="FILE", type=path_argument,
                      help="also plot one of them, blocks against kinds of modules: a .png or .svg file")
    info.add_argument("--quantity", choices=tuple(QUANTITIES), default="frobenius",
                      help="quantity in the heat map (default: frobenius)")

    diff = actions.add_parser(
        "diff", help="compare two adapters", usage="jittor-lora adapter diff DIR DIR [--json]",
        description="Show the settings in which two adapters differ and, for each module that both adapt, the norm of "
                    "the difference of their updates relative to that of the first, and the cosine between the two.")
    diff.add_argument("first", metavar="DIR", type=home_expanded,
                      help="adapter folder in PEFT's layout, or a run folder")
    diff.add_argument("second", metavar="DIR", type=home_expanded, help="the other one")
    _add_json(diff)

    combining = actions.add_parser(
        "combine", help="combine several adapters into one",
        usage="jittor-lora adapter combine DIR DIR … --output DIR [any flag below]",
        description="Combine several adapters of one base into one, as PEFT's add_weighted_adapter does. cat and svd "
                    "are weighted sums of the updates; linear, ties (Yadav et al. 2023), dare_… (Yu et al. 2024) and "
                    "magnitude_prune work on A and B separately; with _svd they work on the updates.")
    combining.add_argument("adapters", metavar="DIR", nargs="+", type=home_expanded,
                           help="adapter folders, or run folders")
    combining.add_argument("--output", metavar="DIR", type=home_expanded, help="folder for the new adapter (required)")
    combining.add_argument("--weights", metavar="W", nargs="+", type=_number, help="one weight per adapter, possibly "
                           "negative (default: 1 each)")
    combining.add_argument("--normalize", action="store_true", help="divide the weights by their sum; with cat "
                           "or svd and without --weights, this gives the mean of the updates")
    combining.add_argument("--method", choices=METHODS, default="svd", help="method (default: svd)")
    combining.add_argument("--density", metavar="X", type=_number, help="share of the values that pruning keeps; for "
                           "ties…, dare_… and magnitude_prune…")
    combining.add_argument("--majority-sign", choices=MAJORITY, default="total", help="how ties… elects "
                           "signs: by sum (total) or by count (frequency) (default: total)")
    combining.add_argument("--svd-rank", metavar="N", type=_count,
                           help="rank of …svd (default: the largest of the adapters)")
    combining.add_argument("--svd-clamp", metavar="Q", type=_number, help="clamp the factors of …svd at this quantile")
    combining.add_argument("--seed", metavar="N", type=_count, default=42,
                           help="seed for the random choice of dare_… (default: 42)")

    converting = actions.add_parser(
        "convert", help="convert adapters of other programs to PEFT's layout",
        usage="jittor-lora adapter convert DIR|FILE.gguf DIR [--base B] | convert FILE.npz DIR [--alpha X] [--base B] "
              "| convert FILE.pt DIR --alpha X [--enable-lora q,v] [--base B] | convert DIR FILE.npz | "
              "convert DIR FILE.pt [--enable-lora q,v]",
        description="Convert an adapter of mlx-lm, litgpt or llama.cpp (GGUF), or LoRA weights saved by loralib (.pt) "
                    "or by the project GPT2_LoRA_Jittor (.npz), to an adapter folder in PEFT's layout; or such a "
                    "folder to a .pt of loralib or, of GPT-2, to the .npz of that project. Separate updates of "
                    "queries, keys and values are one update of c_attn with the sum of their ranks.")
    converting.add_argument("source", metavar="SOURCE", type=path_argument,
                            help="an adapter folder, a GGUF adapter, an .npz file, or a .pt or .bin file")
    converting.add_argument("target", metavar="TARGET", type=path_argument,
                            help="a new folder, or a new .npz or .pt file")
    converting.add_argument("--alpha", metavar="X", type=_number, help="alpha of the file, which does not contain it "
                            "(required for loralib; for .npz default: 16, that project's default)")
    converting.add_argument("--enable-lora", metavar="PARTS", type=_parts, help="parts of c_attn that loralib's "
                            "MergedLinear updates, such as q,v for enable_lora=[True, False, True] (default: by their "
                            "number; to a .pt those with an update)")
    converting.add_argument("--base", metavar="B", type=home_expanded,
                            help="base model to name in the folder (default: the one that SOURCE names, else gpt2); "
                            "adapters of litgpt and llama.cpp need it to be found")


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        raise UserError(f"adapter: expected {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}.\n"
                        "Run `jittor-lora adapter --help` for details.")
    run_action: Callable[[argparse.Namespace], int] = dict(zip(ACTIONS, (_list, _info, _diff, _combine, _convert)))[
        args.action]
    return run_action(args)


def _list(args: argparse.Namespace) -> int:
    from jittor_lora.tasks.adapter import find_adapters
    found = find_adapters(args.folder)
    if args.json:
        _print_json([{"folder": str(one.folder), "problem": one.problem} if one.adapter is None else
                     {"folder": str(one.folder), **_summary(one.adapter)} for one in found])
        return 0
    rows = [("folder", "base", "r", "alpha", "targets", "parameters", "size")]
    for one in found:
        if one.adapter is not None:
            summary = _summary(one.adapter)
            rows.append((str(one.folder), str(summary["base"]), str(summary["r"]), f"{summary['alpha']:g}",
                         _targets(summary["targets"]), f"{summary['parameters']:,}", _size(summary["bytes"])))
    if len(rows) > 1:
        print(*_table(rows, right={2, 3, 5, 6}), sep="\n")
    for one in found:
        if one.problem is not None:
            print(f"note: {one.problem}", file=sys.stderr)
    if not found:
        print(f"{args.folder}: no adapters.", file=sys.stderr)
    return 0


def _info(args: argparse.Namespace) -> int:
    if args.heat_map is not None and args.heat_map.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"--heat-map {args.heat_map}: expected a name that ends in .png or .svg.")
    from jittor_lora.formats.adapter_folder import read_adapter_folder
    from jittor_lora.formats.adapter_source import open_adapter
    from jittor_lora.tasks.adapter import measure
    source = open_adapter(find_adapter(args.adapter))
    adapter = read_adapter_folder(source, base=_config_of(args.base))
    modules = measure(adapter)
    if args.json:
        _print_json({"folder": str(adapter.folder), "format": source.title, **_summary(adapter),
                     "settings": adapter.settings,
                     "other_tensors": {name: list(shape) for name, shape in adapter.others.items()},
                     "modules": [{**{name: value for name, value in one._asdict().items() if name != "spectrum"},
                                  **one.spectrum._asdict()} for one in modules]})
    else:
        _print_info(adapter, modules, source.title)
    if args.heat_map is not None:
        drawn = _draw(args.heat_map, args.quantity, adapter.folder, modules)
        print(drawn, file=sys.stderr if args.json else sys.stdout)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from jittor_lora.formats.adapter_folder import read_adapter_folder
    from jittor_lora.tasks.adapter import compare
    first, second = (read_adapter_folder(find_adapter(one)) for one in (args.first, args.second))
    comparison = compare(first, second)
    if args.json:
        _print_json({"first": str(first.folder), "second": str(second.folder),
                     "settings": [dict(zip(("name", "first", "second"), one)) for one in comparison.settings],
                     "modules": [{"module": one.module, **one.difference._asdict()} for one in comparison.modules],
                     "only_first": comparison.only[0], "only_second": comparison.only[1]})
        return 0
    if comparison.settings:
        print(*_table([("setting", "first", "second"), *(tuple(map(_value, one)) for one in comparison.settings)]),
              "", sep="\n")
    else:
        print("The settings are the same.\n")
    if comparison.modules:
        rows = [("module", "relative difference", "cosine")]
        rows += [(one.module, _measure(one.difference.relative), _measure(one.difference.cosine))
                 for one in comparison.modules]
        print(*_table(rows, right={1, 2}), sep="\n")
    for adapter, modules in zip((first, second), comparison.only):
        if modules:
            print(f"\nOnly {adapter.folder} adapts\n  " + "\n  ".join(modules))
    for adapter in (first, second):
        _note_others(adapter)
    return 0


def _combine(args: argparse.Namespace) -> int:
    if args.output is None:
        raise UserError("required but missing:\n  --output  folder for the new adapter")
    weights = [1.0] * len(args.adapters) if args.weights is None else args.weights
    if len(weights) != len(args.adapters):
        raise UserError(f"--weights: expected {len(args.adapters)}, one per adapter, found {len(weights)}.")
    if args.normalize:
        total = math.fsum(weights)
        if total <= 0:
            raise UserError(f"--normalize: expected weights with a sum above 0, found {total:g}.")
        weights = [weight / total for weight in weights]
    output = new_folder("--output", Path(args.output))
    from jittor_lora.tasks.adapter import combine_folders
    how = Combination(args.method, args.density, args.majority_sign, args.svd_rank, args.svd_clamp, args.seed)
    folders = [find_adapter(one) for one in args.adapters]
    adapter, notes = combine_folders(folders, weights, how, output)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    parts = ", ".join(f"{weight:g} × {folder}" for weight, folder in zip(weights, folders))
    print(f"{output}: {args.method} of {parts}; rank {adapter.settings['r']}, {adapter.parameters:,} parameters.")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from jittor_lora.formats.adapter_source import PEFT, open_adapter
    from jittor_lora.formats.reference_npz import DEFAULT_ALPHA
    from jittor_lora.tasks.adapter import folder_to_loralib, folder_to_npz, loralib_to_folder, npz_to_folder
    if may_be_adapter(args.source):
        source = open_adapter(args.source)
        if source.title != PEFT:
            return _convert_other(args, source)
    if not args.source.is_dir():
        output = new_folder("TARGET", args.target)
        is_npz = args.source.suffix.lower() == ".npz"
        if args.alpha is not None and args.alpha <= 0:
            raise UserError(f"--alpha: expected a number above 0, found {args.alpha:g}.")
        if is_npz and args.enable_lora is not None:
            raise UserError("--enable-lora needs a file of loralib as SOURCE.")
        base = args.base or "gpt2"
        if is_npz:
            adapter = npz_to_folder(args.source, output, base, DEFAULT_ALPHA if args.alpha is None else args.alpha)
            notes = [f"the file does not contain alpha; using {DEFAULT_ALPHA:g}, the default of GPT2_LoRA_Jittor."
                     ] if args.alpha is None else []
        elif args.alpha is None:
            raise UserError(f"{args.source}: a file of loralib does not contain alpha. Give the lora_alpha it was "
                            "trained with as --alpha: 32 in loralib's GPT-2 examples, 1 by default in its layers.")
        else:
            adapter, notes = loralib_to_folder(args.source, output, base, args.alpha, args.enable_lora)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"{output}: rank {adapter.settings['r']}, {adapter.parameters:,} parameters.")
        return 0
    wrong = [f"{name} needs a file as SOURCE" for name, value in
             (("--alpha", args.alpha), ("--base", args.base)) if value is not None]
    suffix = args.target.suffix.lower()
    if suffix == ".npz" and args.enable_lora is not None:
        wrong.append("--enable-lora needs a file of loralib as SOURCE or TARGET")
    if suffix not in (".npz", ".pt"):
        wrong.append(f"TARGET {args.target}: expected a name that ends in .npz or .pt")
    elif args.target.exists():
        wrong.append(f"TARGET {args.target}: the file exists. Name another path")
    if wrong:
        raise UserError("; ".join(wrong) + ".")
    if suffix == ".pt":
        written = folder_to_loralib(find_adapter(str(args.source)), args.target, args.enable_lora)
        print(f"{args.target}: load it into {_loralib_layers(written)}.")
        return 0
    rank, alpha = folder_to_npz(find_adapter(str(args.source)), args.target)
    print(f"{args.target}: load it with LoRAConfig(r={rank}, alpha={alpha:g}).")
    return 0


def _loralib_layers(written: Any) -> str:
    """In words: what loralib's layers must be like."""
    ranks = ", ".join(f"r={'|'.join(map(str, ranks))} in {kind}" for kind, ranks in written.ranks.items())
    text = f"loralib's layers with lora_alpha={written.alpha:g}, {ranks}"
    if written.enabled is None:
        return text
    return f"{text}; c_attn is a MergedLinear with enable_lora={[part in written.enabled for part in 'qkv']}"


def _convert_other(args: argparse.Namespace, source: Any) -> int:
    """An adapter of another program's format."""
    wrong = [f"{name} needs a file of loralib or GPT2_LoRA_Jittor as SOURCE" for name, value in
             (("--alpha", args.alpha), ("--enable-lora", args.enable_lora)) if value is not None]
    if wrong:
        raise UserError("; ".join(wrong) + ".")
    output = new_folder("TARGET", args.target)
    from jittor_lora.tasks.adapter import convert_other
    adapter = convert_other(source, output, args.base, _config_of(args.base))
    print(f"{output}: from {source.title}, rank {adapter.settings['r']}, {adapter.parameters:,} parameters.")
    return 0


def _config_of(base: str | None) -> Any:
    """The sizes of a base model; None if none is named."""
    if base is None:
        return None
    from jittor_lora.formats.bases import load_base, resolve_base
    return load_base(resolve_base(base))[0].config


def _summary(adapter: Any) -> dict[str, Any]:
    settings = adapter.settings
    return {"base": settings.get("base_model_name_or_path"), "r": settings.get("r", 8),
            "alpha": settings.get("lora_alpha", 8), "targets": settings["target_modules"],
            "parameters": adapter.parameters, "bytes": adapter.bytes}


def _print_info(adapter: Any, modules: Sequence[Any], title: str) -> None:
    from jittor_lora.tasks.adapter import in_use
    summary = _summary(adapter)
    form = "" if title == "PEFT" else f"of {title}, "
    print(f"{adapter.folder}: {form}{summary['parameters']:,} parameters, {_size(summary['bytes'])}")
    print(*_table([("base", _value(summary["base"])), *((name, _value(value)) for name, value
                                                        in in_use(adapter.settings))]), "", sep="\n")
    rows = [("module", "rank", "scaling", "‖ΔW‖ Frobenius", "‖ΔW‖ spectral", "effective rank")]
    rows += [(one.module, str(one.rank), f"{one.scaling:.4g}", *map(_measure, one.spectrum)) for one in modules]
    print(*_table(rows, right={1, 2, 3, 4, 5}), sep="\n")
    _note_others(adapter)


def _note_others(adapter: Any) -> None:
    if adapter.others:
        print(f"note: {adapter.folder}: {len(adapter.others)} tensors without a low-rank update are not measured, "
              f"such as {next(iter(adapter.others))}.", file=sys.stderr)


def _draw(path: Path, quantity: str, folder: Path, modules: Sequence[Any]) -> Path:
    from jittor_lora.evaluation.charts import save_chart
    from jittor_lora.evaluation.heat_map import heat_map
    values = {("–" if one.layer is None else str(one.layer), one.kind): getattr(one.spectrum, quantity)
              for one in modules}
    figure = heat_map(values, title=folder.resolve().name, quantity=QUANTITIES[quantity])
    return save_chart(figure, path.with_suffix(""), [path.suffix.lower()[1:]])[0]


def _table(rows: Sequence[Sequence[str]], right: frozenset[int] | set[int] = frozenset()) -> list[str]:
    """Lines of a table; the columns in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{cell:>{width}}" if i in right else f"{cell:{width}}"
                      for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]


def _print_json(value: Any) -> None:
    print(json_text(_without_nan(value), indent=2))


def _without_nan(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _targets(targets: Any) -> str:
    text = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    return text if len(text) <= 48 else text[:47] + "…"


def _measure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return value


def _parts(text: str) -> str:
    parts = text.split(",")
    if not parts or [part for part in "qkv" if part in parts] != parts:
        raise argparse.ArgumentTypeError(f"expected some of q,k,v in this order, found {text!r}")
    return "".join(parts)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)
