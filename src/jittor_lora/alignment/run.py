"""One alignment from settings to a folder: inputs, both sides, their comparison."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from jittor_lora.alignment import inputs as files
from jittor_lora.alignment import twin
from jittor_lora.alignment.compare import compare
from jittor_lora.alignment.inputs import Inputs
from jittor_lora.alignment.ours import run_here
from jittor_lora.alignment.overlay import overlay
from jittor_lora.alignment.read_record import read_record
from jittor_lora.alignment.record import JITTOR, LOG, PYTORCH
from jittor_lora.alignment.report_files import write_reports
from jittor_lora.alignment.result import CHECKS, Alignment
from jittor_lora.errors import UserError
from jittor_lora.evaluation.loss_logs import read_loss_files
from jittor_lora.files.atomic import atomic_write, make_writable
from jittor_lora.files.untrusted import read_input
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.settings.align import AlignConfig
from jittor_lora.settings.names import did_you_mean, nearest

THEIR_LOG = "their.log"
OWN = (files.SETTINGS, files.INPUTS, twin.SCRIPT, JITTOR, PYTORCH, THEIR_LOG)


def align(config: AlignConfig, script: Path | None = None, python: str = sys.executable,
          overwrite: bool = False) -> Alignment:
    """Train on both sides, as far as that is not done yet, compare, and write the report.

    Args:
        config: with `data` and `output` given.
        script: the PyTorch side, in place of the shipped one.
        python: runs it.
        overwrite: replace an alignment with other settings.

    Raises:
        UserError: something that the user can fix; also if the folder holds an alignment with other settings.
    """
    _check_names(config)
    text = twin.script_text(script)
    python = twin.checked_python(python)
    folder = Path(config.output)
    inputs = _our_side(config, folder, overwrite)
    if _differs(folder / twin.SCRIPT, text):
        _remove(folder / PYTORCH)
        with atomic_write(folder / twin.SCRIPT) as stream:
            stream.write(text)
    if not (folder / PYTORCH).is_dir():
        _say("--- PyTorch")
        twin.run_there(folder, python, inputs.settings["threads"])
    asked = inputs.questions
    found = compare(read_record(folder / JITTOR), read_record(folder / PYTORCH),
                    dropout=inputs.prepared.config.lora_dropout > 0, references=asked.references if asked else None,
                    scoring=asked.scoring if asked else "squad", tolerances=config.tolerances)
    logs = [(f"{side}/{LOG}", "file log", {"name": name}) for side, name in zip((JITTOR, PYTORCH), found.names)]
    write_reports(folder, found, language=config.language, font=config.font,
                  files=[*logs, (twin.SCRIPT, "file twin", {})])
    return found


def lay_over(config: AlignConfig, log: Path, overwrite: bool = False) -> Alignment:
    """Train on our side, as far as that is not done yet, and write a report with the losses of a log of the user's.

    Raises:
        UserError: as `align`; also if the log cannot be read or has no losses.
    """
    content = read_input(log)
    read_loss_files(log)  # before the training
    folder = Path(config.output)
    _our_side(config, folder, overwrite)
    ours = read_record(folder / JITTOR)
    found, notes = overlay(ours.steps, ours.facts, log)
    for note in notes:
        _say(note)
    with atomic_write(folder / THEIR_LOG, "wb") as stream:
        stream.write(content)
    write_reports(folder, found, language=config.language, font=config.font, files=[
        (f"{JITTOR}/{LOG}", "file log", {"name": found.names[0]}), (THEIR_LOG, "file log", {"name": found.names[1]})])
    return found


def _check_names(config: AlignConfig) -> None:
    wrong = [name for name in config.tolerances or () if name not in CHECKS]
    if wrong:
        raise UserError(f"--tolerances: no such check: {', '.join(wrong)}{did_you_mean(nearest(wrong[0], CHECKS))}\n"
                        f"There are {', '.join(CHECKS)}.")


def _our_side(config: AlignConfig, folder: Path, overwrite: bool) -> Inputs:
    make_writable(folder)
    inputs = files.collect(config)
    _provide(folder, inputs, overwrite)
    if not (folder / JITTOR).is_dir():
        _say("--- jittor-lora")
        run_here(inputs, folder / JITTOR)
    return inputs


def _provide(folder: Path, inputs: Inputs, overwrite: bool) -> None:
    """Write the inputs, unless these are there already.

    Raises:
        UserError: others are there.
    """
    present = [name for name in OWN if (folder / name).exists()]
    before = read_json(folder / files.SETTINGS) if files.SETTINGS in present else None
    different = [] if before is None else files.first_difference(before, inputs.settings)
    if before is not None and not different:
        return
    if present and not overwrite:
        if before is None:
            raise UserError(f"{folder}: has {', '.join(present)} already, but no {files.SETTINGS}. Name another "
                            "--output, or replace them with --overwrite.")
        raise UserError("\n  ".join([f"{folder}: holds an alignment with other settings:", *different])
                        + "\nName another --output, or replace it with --overwrite.")
    for name in OWN:
        _remove(folder / name)
    files.write(folder, inputs)


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_bytes() != text.encode()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
