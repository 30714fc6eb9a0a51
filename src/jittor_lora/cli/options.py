"""Flags generated from settings models, and settings that several verbs share."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Optional, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from jittor_lora.errors import Stopped, UserError
from jittor_lora.formats.adapter_files import CONFIG_FILE
from jittor_lora.settings.base import PATH, Settings, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import LARGEST_SEED
from jittor_lora.settings.text import flag, home_expanded

METAVARS = {"adapter": "DIR", "base": "B", "data": "FILE", "dev": "FILE", "file": "FILE", "font": "FILE",
            "output": "DIR", "train_data": "FILE"}
SomeSettings = TypeVar("SomeSettings", bound=Settings)


class ModelOptions(Settings):
    """A base, with or without an adapter."""

    base: Optional[str] = setting(None, "Model", "base model: a folder, a named base (gpt2, smollm2-135m), a Hub id, "
                                  "or auto; by default the one that the adapter was trained on", holds=PATH,
                                  min_length=1)
    adapter: Optional[str] = setting(None, "Model", "adapter folder in PEFT's layout, or a run folder", holds=PATH,
                                     min_length=1)

    def base_and_adapter(self):
        """The base and the adapter for `session.load`: the given base, else the adapter's, else auto; and an
        `AdapterSource`, None without an adapter.

        Raises:
            UserError: the adapter was not found or its settings cannot be read, or its base is not named or not found.
        """
        if self.adapter is None:
            return self.base or "auto", None
        folder = find_adapter(self.adapter, "--adapter ")
        from jittor_lora.formats.adapter_source import open_adapter
        from jittor_lora.formats.base_record import base_of_adapter
        adapter = open_adapter(folder)
        return self.base or base_of_adapter(adapter), adapter


class ThreadOptions(Settings):
    """The number of threads."""

    threads: Optional[int] = setting(None, "Computing", "processor threads; by default one per core", ge=1)

    def set_threads(self) -> None:
        if self.threads:
            from jittor_lora.system.runtime import set_threads
            set_threads(self.threads)


class ComputeOptions(ThreadOptions):
    """Threads and precision."""

    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "Computing", "dtype of matrix products with frozen weights; bf16 is faster, and falls back to fp32 "
        "where the processor lacks it")


class DecodingOptions(Settings):
    """Search for the likeliest text, and constraints on it."""

    beams: int = setting(1, "Decoding", "number of beams in beam search; 1 for greedy decoding or sampling", ge=1)
    length_penalty: float = setting(1.0, "Decoding", "with beams: a text's log-probability is divided by its length to "
                                    "this power; higher values favour longer texts")
    early_stopping: Literal["no", "yes", "never"] = setting(
        "no", "Decoding", "with beams: when the search stops, as in transformers: once open beams are unlikely to be "
        "better (no), with as many finished texts as beams (yes), or once no beam can be better (never)")
    no_repeat_ngram: int = setting(0, "Decoding", "no sequence of N tokens occurs twice; 0 for no limit", ge=0)
    min_new_tokens: int = setting(0, "Decoding", "minimum length in tokens", ge=0)
    repetition_penalty: float = setting(1.0, "Decoding", "above 1, earlier tokens become less likely", gt=0)

    def conflicts(self) -> Iterator[Problem]:
        if self.beams == 1:
            for name, off in (("length_penalty", 1.0), ("early_stopping", "no")):
                if getattr(self, name) != off:
                    yield Problem((name, "beams"), "has no effect without beams; give --beams")

    def decoding(self, max_new_tokens: int, stop: Optional[str]):
        """The settings as a `Decoding`."""
        from jittor_lora.inference.beam_settings import Beams
        from jittor_lora.inference.generator import Decoding
        from jittor_lora.inference.sampling import Sampling
        names = {field.name for field in dataclasses.fields(Sampling)} & set(type(self).model_fields)
        beams = None
        if self.beams > 1:
            stopping = {"no": False, "yes": True}.get(self.early_stopping, self.early_stopping)
            beams = Beams(self.beams, self.length_penalty, stopping)
        return Decoding(max_new_tokens, Sampling(**{name: getattr(self, name) for name in names}), stop, beams)


class SamplingOptions(DecodingOptions):
    """How the next token is sampled."""

    temperature: float = setting(0.0, "Sampling", "0 picks the likeliest token; above 0 samples, the higher the more "
                                 "random", ge=0)
    top_k: int = setting(0, "Sampling", "sample from the N likeliest tokens; 0 for all", ge=0)
    top_p: float = setting(1.0, "Sampling", "sample from the likeliest tokens that together have this probability",
                           gt=0, le=1)
    min_p: float = setting(0.0, "Sampling", "sample only tokens at least this share as likely as the likeliest; 0 for "
                           "all", ge=0, le=1)
    seed: int = setting(42, "Sampling", "seed for sampling", ge=0, le=LARGEST_SEED)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.temperature == 0:
            for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if getattr(self, name) != off:
                    yield Problem((name, "temperature"),
                                  "has no effect while temperature is 0; give a temperature above 0")
        elif self.beams > 1:
            yield Problem(("temperature", "beams"), "beam search does not sample; leave one of the two out")


def find_adapter(name: str, flag_text: str = "") -> Path:
    """The folder of an adapter's files: `name`, or `adapter/` in it if it is a run folder.

    Args:
        flag_text: the flag of `name`, for the message.

    Raises:
        UserError: no adapter was found.
    """
    folders = [Path(name), Path(name, "adapter")]
    for folder in folders:
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise UserError(f"{flag_text}{name}: expected an adapter folder, with {CONFIG_FILE}, or the run folder of "
                    f"train; found {'neither in it' if folders[0].is_dir() else 'no such folder'}.")


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], required: Iterable[str] = ()) -> None:
    """Add one flag per field, in the field's group, with description and default as help.

    A flag that is not given leaves no attribute, so `given` can tell it from one that is given the default value.
    Values stay text, for the settings model to check all at once.

    Args:
        required: fields marked as required in the help (`require` checks them).
    """
    groups: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        title = field.json_schema_extra["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        kind, text = _kind(field.annotation), _help(field, name in required)
        if kind is bool:
            groups[title].add_argument(flag(name), "--no-" + flag(name)[2:], dest=name, action=_Switch, nargs=0,
                                       default=argparse.SUPPRESS, help=text)
        else:
            groups[title].add_argument(flag(name), dest=name, metavar=_metavar(name, kind), default=argparse.SUPPRESS,
                                       help=text)


def given(args: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """The fields of `settings` given as flags, by name, with their texts unescaped."""
    return settings.written({name: getattr(args, name) for name in settings.model_fields if hasattr(args, name)})


def from_flags(args: argparse.Namespace, settings: type[SomeSettings]) -> SomeSettings:
    """The settings given as flags.

    Raises:
        UserError: settings are wrong; all are listed.
    """
    values = given(args, settings)
    return settings({name: flag(name) for name in values}, **values)


def path_argument(text: str) -> Path:
    """A path with `~` expanded, for arguments that are not settings."""
    return Path(home_expanded(text))


def named_path_argument(text: str) -> str:
    """The same for `[NAME=]PATH`."""
    name, _, path = text.partition("=")
    return f"{name}={home_expanded(path)}" if path.startswith("~") else home_expanded(text)


def require(settings: Settings, *fields: str) -> None:
    """
    Raises:
        UserError: some of `fields` are unset; all are listed, with their descriptions.
    """
    missing = [name for name in fields if getattr(settings, name) is None]
    if missing:
        width = max(len(flag(name)) for name in missing)
        lines = [f"  {flag(name):{width}}  {type(settings).model_fields[name].description}" for name in missing]
        raise UserError("\n".join(["required but missing:", *lines]))


def new_folder(name: str, folder: Path) -> Path:
    """`folder`, if it is new or empty.

    Args:
        name: the argument that holds it, for the message.

    Raises:
        UserError: it contains files, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{name} {folder}: expected a new or empty folder, found "
                        f"{'files in it' if folder.is_dir() else 'a file'}. Name another path.")
    return folder


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command ended by a signal, by the shell's rule: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)


def resumable(work: Callable[[], None]) -> int:
    """Run `work`, which resumes where it stopped when the command is repeated. Returns the exit code."""
    try:
        work()
        return 0
    except KeyboardInterrupt as stop:
        print("\nInterrupted.\nTo continue, run the same command again.", file=sys.stderr)
        return exit_code(stop)


class _Switch(argparse.Action):
    """`--x` and `--no-x`."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no-"))


def _kind(annotation: Any) -> Any:
    members = get_args(annotation) if get_origin(annotation) is Union else (annotation,)
    return next(member for member in members if member is not type(None))


def _metavar(name: str, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is list:
        return "NUMBERS" if get_args(kind) == (int,) else "NAMES"
    if get_origin(kind) is dict:
        return "NAME=NUMBER,..."
    if kind in (int, float):
        return {int: "N", float: "X"}[kind]
    return METAVARS.get(name, "TEXT")


def _help(field: FieldInfo, required: bool) -> str:
    value = field.default
    if required:
        text = f"{field.description} (required)"
    elif value is None:  # the description says what happens then
        text = field.description
    elif isinstance(value, bool):
        text = f"{field.description} (default: {'yes' if value else 'no'})"
    else:
        text = f"{field.description} (default: {repr(value) if isinstance(value, str) and ' ' in value else value})"
    return text.replace("%", "%%")
