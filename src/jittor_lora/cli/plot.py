"""`jittor-lora plot`: loss curves, and charts of EM and F1, as PNG and SVG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jittor_lora.cli.arguments import named_path_argument, path_argument
from jittor_lora.errors import UserError
from jittor_lora.settings.text import home_expanded
from jittor_lora.tasks.run_folder import refuse_links

_FORMATS = ("png", "svg")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "plot", help="plot loss curves, and base against adapter as bars",
        usage="jittor-lora plot RUN_FOLDER | --train-loss FILE [--val-loss FILE] | --metrics [NAME=]FILE … "
              "[--output FILE_OR_DIR] [any flag below]",
        description="Plot the loss curves of a run or of any text log, and exact match and F1 as bars with 95 % "
                    "intervals. For a run folder: its curves, and bars if it contains evaluation/*/metrics.json.")
    source = parser.add_argument_group("What to plot")
    source.add_argument("run_folder", metavar="RUN_FOLDER", nargs="?", type=path_argument,
                        help="output folder of train")
    source.add_argument("--train-loss", metavar="FILE", type=path_argument,
                        help="log of another program: one number per line, a table, JSON, or lines such as "
                        "`Step 10, Loss: 3.2`; its validation losses are plotted too")
    source.add_argument("--val-loss", metavar="FILE", type=path_argument,
                        help="log of the validation losses, if they are in a separate file")
    source.add_argument("--metrics", metavar="[NAME=]FILE", nargs="+", type=named_path_argument,
                        help="metrics.json of each evaluation; named after its folder by default")
    look = parser.add_argument_group("Look")
    look.add_argument("--language", choices=("en", "zh"), default="en", help="language of the labels (default: en)")
    look.add_argument("--font", metavar="FILE", type=path_argument, help="font file for the labels; by default an "
                      "installed font")
    look.add_argument("--smoothing", metavar="N", type=_window,
                      help="window of the moving average of training losses; 1 for none (default: a tenth of them, at "
                      "most 50)")
    look.add_argument("--title", metavar="TEXT", help="title in place of the default one")
    output = parser.add_argument_group("Output")
    output.add_argument("--output", metavar="FILE_OR_DIR", type=home_expanded,
                        help="a .png or .svg file, or a folder for both formats (default: plots/ in "
                        "the run folder). A second plot is named FILE-scores")


def run(args: argparse.Namespace) -> int:
    if args.run_folder is None and args.train_loss is None and args.metrics is None:
        raise UserError("nothing to plot: expected RUN_FOLDER, --train-loss FILE or --metrics FILE …")
    if args.run_folder is not None and args.train_loss is not None:
        raise UserError(f"found both a run folder ({args.run_folder}) and --train-loss; give one of them.")
    if args.val_loss is not None and args.train_loss is None:
        raise UserError("--val-loss needs --train-loss FILE.")
    if args.output is None and args.run_folder is None:
        raise UserError("--output is needed: a .png or .svg file, or a folder.")

    from jittor_lora.evaluation.charts import loss_chart, save_chart
    from jittor_lora.evaluation.loss_logs import read_loss_files, read_run_losses
    from jittor_lora.evaluation.system_charts import score_chart
    look = {"title": args.title, "language": args.language, "font": args.font}
    charts = {}
    systems = _systems(args)
    curves = None
    if args.run_folder is not None:
        curves = read_run_losses(args.run_folder)
    elif args.train_loss is not None:
        curves = read_loss_files(args.train_loss, args.val_loss)
    if curves is not None:
        for note in curves.notes:
            print(f"note: {note}", file=sys.stderr)
        charts["loss"] = loss_chart(curves, smoothing=args.smoothing, **look)
    if systems:
        charts["scores"] = score_chart(systems, **look)

    if args.output is None:
        refuse_links(args.run_folder)
    folder = args.output if args.output is not None else args.run_folder / "plots"
    for name, (path, formats) in _targets(str(folder), list(charts)).items():
        for written in save_chart(charts[name], path, formats):
            print(written)
    return 0


def _systems(args: argparse.Namespace) -> list:
    """(name, metrics) of each system to plot as bars."""
    from jittor_lora.evaluation.metrics import read_metrics
    from jittor_lora.evaluation.scoring import same_rule
    if args.metrics is not None:
        named = [_named(argument) for argument in args.metrics]
    elif args.run_folder is not None:
        found = {path.parent.name: path for path in args.run_folder.glob("evaluation/*/metrics.json")}
        order = sorted(found, key=lambda name: (name != "base", name != "adapter", name))
        named = [(name, found[name]) for name in order]
    else:
        named = []
    names = [name for name, _ in named]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"--metrics: several evaluations are named {', '.join(repeated)}; tell them apart with "
                        "NAME=FILE.")
    systems, wrong = [], []
    for name, path in named:
        try:
            systems.append((name, read_metrics(path)))
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    same_rule({name: metrics.scoring for name, metrics in systems})
    return systems


def _named(argument: str) -> tuple[str, Path]:
    """(name, file) of `[NAME=]FILE`, where FILE may be the folder of metrics.json."""
    splits = [index for index, character in enumerate(argument) if character == "="]
    # Names and paths may contain "=" themselves: an existing file tells which one separates them.
    named = [(argument[:index], Path(argument[index + 1:])) for index in splits if Path(argument[index + 1:]).exists()]
    if named and not Path(argument).exists():
        name, path = named[0]
        return name, path / "metrics.json" if path.is_dir() else path
    path = Path(argument)
    path = path / "metrics.json" if path.is_dir() else path
    return (path.resolve().parent.name if path.name == "metrics.json" else path.stem), path


def _targets(output: str, names: list[str]) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """(path without suffix, formats) per plot."""
    path = Path(output)
    suffix = path.suffix.lower()[1:]
    if path.is_dir() or output.endswith("/") or not suffix:
        return {name: (path / name, _FORMATS) for name in names}
    if suffix not in _FORMATS:
        raise UserError(f"--output {output}: expected a name that ends in .png or .svg, or a folder (a new one ends "
                        "in /).")
    stem = path.with_suffix("")
    return {name: (stem if name == names[0] else Path(f"{stem}-{name}"), (suffix,)) for name in names}


def _window(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)
