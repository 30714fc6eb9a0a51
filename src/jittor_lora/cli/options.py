"""Flags made from settings models, and the settings that several verbs share."""

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
from jittor_lora.settings.base import PATH, Problem, Settings, home_expanded, setting
from jittor_lora.settings.run import LARGEST_SEED, flag

METAVARS = {"adapter": "DIR", "base": "B", "data": "FILE", "dev": "FILE", "file": "FILE", "font": "FILE",
            "output": "DIR", "train_data": "FILE"}
SomeSettings = TypeVar("SomeSettings", bound=Settings)


class ModelOptions(Settings):
    """Which model: a base, with or without an adapter."""

    base: Optional[str] = setting(None, "Model", "base model: a folder, a named base (gpt2, smollm2-135m), a Hub id, "
                                  "or auto; by default the one the adapter was trained on", holds=PATH, min_length=1)
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

    threads: Optional[int] = setting(None, "Computing", "processor threads; by default one for each core", ge=1)

    def set_threads(self) -> None:
        if self.threads:
            from jittor_lora.system.runtime import set_threads
            set_threads(self.threads)


class ComputeOptions(ThreadOptions):
    """How it is computed."""

    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "Computing", "numbers of the products with frozen weights; bf16 is faster than fp32, which is taken "
        "where the processor has no bf16")


class DecodingOptions(Settings):
    """How a text is searched for, and what it must be like."""

    beams: int = setting(1, "Decoding", "look for the likeliest text with so many beams; 1 goes token by token", ge=1)
    length_penalty: float = setting(1.0, "Decoding", "with beams: a text's log-probability is divided by its length to "
                                    "this power, so the higher the longer")
    early_stopping: Literal["no", "yes", "never"] = setting(
        "no", "Decoding", "with beams: when the search ends, as in transformers: by a guess whether open beams can be "
        "better (no), with as many finished texts as beams (yes), or when none can be better (never)")
    no_repeat_ngram: int = setting(0, "Decoding", "so many tokens in a row never occur twice; 0 for no limit", ge=0)
    min_new_tokens: int = setting(0, "Decoding", "no end before so many tokens", ge=0)
    repetition_penalty: float = setting(1.0, "Decoding", "above 1 makes tokens seen before less likely", gt=0)

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
    """How the next token is chosen."""

    temperature: float = setting(0.0, "Sampling", "0 takes the likeliest token; above 0 draws, the higher the wilder",
                                 ge=0)
    top_k: int = setting(0, "Sampling", "draw from so many likeliest tokens only; 0 for all", ge=0)
    top_p: float = setting(1.0, "Sampling", "draw from the likeliest tokens that together have this probability", gt=0,
                           le=1)
    min_p: float = setting(0.0, "Sampling", "draw only tokens at least this share as likely as the likeliest; 0: all",
                           ge=0, le=1)
    seed: int = setting(42, "Sampling", "seed of the draws", ge=0, le=LARGEST_SEED)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.temperature == 0:
            for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if getattr(self, name) != off:
                    yield Problem((name, "temperature"),
                                  "has no effect while temperature is 0; give a temperature above 0")
        elif self.beams > 1:
            yield Problem(("temperature", "beams"), "beams draw nothing; leave one of them out")


def find_adapter(name: str, flag_text: str = "") -> Path:
    """The folder that holds an adapter's files: the one of this name, or `adapter/` in it, if it is a run folder.

    Args:
        flag_text: the flag that the name was given with, for the message.

    Raises:
        UserError: there is no adapter.
    """
    folders = [Path(name), Path(name, "adapter")]
    for folder in folders:
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise UserError(f"{flag_text}{name}: expected an adapter folder, with {CONFIG_FILE}, or the run folder of a "
                    f"training; found {'neither in it' if folders[0].is_dir() else 'no such folder'}.")


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], required: Iterable[str] = ()) -> None:
    """A flag for each field, under the field's group; its help is the description with the default.

    A flag that is not given leaves no attribute, so that `given` tells it from one given with the default's value.
    Values stay text, for the settings model to check all at once.

    Args:
        required: fields whose help says that they are needed (whether they were given is `require`'s to check).
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
    """The fields of `settings` that were given as flags, by name, their texts unescaped."""
    return settings.written({name: getattr(args, name) for name in settings.model_fields if hasattr(args, name)})


def from_flags(args: argparse.Namespace, settings: type[SomeSettings]) -> SomeSettings:
    """The settings given as flags.

    Raises:
        UserError: some are wrong; all are listed.
    """
    values = given(args, settings)
    return settings({name: flag(name) for name in values}, **values)


def path_argument(text: str) -> Path:
    """A path with its `~` expanded: the `type` of arguments that are not settings."""
    return Path(home_expanded(text))


def named_path_argument(text: str) -> str:
    """The same for `[NAME=]PATH`."""
    name, _, path = text.partition("=")
    return f"{name}={home_expanded(path)}" if path.startswith("~") else home_expanded(text)


def require(settings: Settings, *fields: str) -> None:
    """
    Raises:
        UserError: some of `fields` are unset; all are listed, with what they are.
    """
    missing = [name for name in fields if getattr(settings, name) is None]
    if missing:
        width = max(len(flag(name)) for name in missing)
        lines = [f"  {flag(name):{width}}  {type(settings).model_fields[name].description}" for name in missing]
        raise UserError("\n".join(["still needed:", *lines]))


def new_folder(name: str, folder: Path) -> Path:
    """`folder`, which the argument `name` is to be written to.

    Raises:
        UserError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{name} {folder}: expected a new or empty folder, found "
                        f"{'files in it' if folder.is_dir() else 'a file'}. Name another path.")
    return folder


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command that a signal ended, by the shell's rule: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)


def resumable(work: Callable[[], None]) -> int:
    """The exit code of a command that goes on where it stopped when it is given again."""
    try:
        work()
        return 0
    except KeyboardInterrupt as stop:
        print("\nInterrupted.\nThe same command goes on where this one stopped.", file=sys.stderr)
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
    elif value is None:  # the description says what then holds
        text = field.description
    elif isinstance(value, bool):
        text = f"{field.description} (default: {'yes' if value else 'no'})"
    else:
        text = f"{field.description} (default: {repr(value) if isinstance(value, str) and ' ' in value else value})"
    return text.replace("%", "%%")
