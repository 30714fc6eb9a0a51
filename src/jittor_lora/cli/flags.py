"""Flags generated from a settings model."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from jittor_lora.errors import UserError
from jittor_lora.settings.base import Settings
from jittor_lora.settings.text import flag

METAVARS = {"adapter": "DIR", "api_key_file": "FILE", "base": "B", "data": "FILE", "dev": "FILE", "file": "FILE",
            "font": "FILE", "host": "ADDRESS", "output": "DIR", "runs": "DIR", "train_data": "FILE"}
SomeSettings = TypeVar("SomeSettings", bound=Settings)


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], required: Iterable[str] = (),
              without: Container[str] = ()) -> None:
    """Add one flag per field, in the field's group, with description and default as help.

    A flag that is not given leaves no attribute, so `given` can tell it from one that is given the default value.
    Values stay text, for the settings model to check all at once.

    Args:
        required: fields marked as required in the help (`require` checks them).
        without: fields that get no flag.
    """
    groups: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if name in without:
            continue
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
    for name, (successor, _) in settings.former.items():
        if successor in without:
            continue
        parser.add_argument(flag(name), "--no-" + flag(name)[2:], dest=name, action=_Switch, nargs=0,
                            default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def given(args: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """The fields of `settings` given as flags, by name, with their texts unescaped."""
    return settings.written({name: getattr(args, name) for name in (*settings.model_fields, *settings.former)
                             if hasattr(args, name)})


def from_flags(args: argparse.Namespace, settings: type[SomeSettings]) -> SomeSettings:
    """The settings given as flags.

    Raises:
        UserError: settings are wrong; all are listed.
    """
    values = given(args, settings)
    return settings({name: flag(name) for name in values}, **values)


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
        return "NAME=" + {str: "FIELD", Any: "VALUE"}.get(get_args(kind)[1], "NUMBER") + ",..."
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
