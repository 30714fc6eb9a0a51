"""Typed settings: one frozen model per verb, every wrong value reported at once, every value's origin known."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from jittor_lora.errors import UserError

_ESCAPE, _ESCAPES = re.compile(r"\\([nt\\])"), {"n": "\n", "t": "\t", "\\": "\\"}
_HALF = re.compile(r"[\ud800-\udfff]")
SHOWN_PROBLEMS = 20  # what fits on one screen

PATH, TEXT, VERBATIM = "path", "text", "verbatim"

# What other tools call a setting, for the suggestion after an unknown name.
NAMES_ELSEWHERE = {
    "accumulation": "gradient_accumulation",
    "alpha": "lora_alpha",
    "alpha_pattern": "lora_alpha_pattern",
    "bias": "lora_bias",
    "dropout": "lora_dropout",
    "grad_accum": "gradient_accumulation",
    "gradient_accumulation_steps": "gradient_accumulation",
    "init_lora_weights": "lora_init",
    "layers_pattern": "lora_layers_pattern",
    "layers_to_transform": "lora_layers_to_transform",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "max_tokens_to_generate": "max_new_tokens",
    "model": "base",
    "model_name_or_path": "base",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "batch_size",
    "r": "lora_r",
    "rank": "lora_r",
    "rank_pattern": "lora_rank_pattern",
    "steps": "max_steps",
    "train_file": "data",
    "use_dora": "lora_use_dora",
    "use_rslora": "lora_use_rslora",
    "validation_file": "dev",
    "warmup": "warmup_steps",
}


class Problem(NamedTuple):
    """One reason to refuse the settings: the fields it is about (the first is named to the user), and why."""

    fields: tuple[str, ...]
    text: str


def setting(default: Any, group: str, description: str, *, expected: str | None = None, holds: str | None = None,
            **limits: Any) -> Any:
    """A field with its group and one-line description, which are also the command line's help.

    Args:
        expected: what a right value looks like, where type and `limits` (`ge`, `le`, `gt`, `lt`) do not say it.
        holds: PATH, a path, whose `~` is the home folder; or what a text is on the command line and in recipes: TEXT,
            with `\\n` for a line break (see `unescaped`), or VERBATIM, as it stands.
    """
    return Field(default, description=description,
                 json_schema_extra={"group": group, "expected": expected, "holds": holds}, **limits)


class Settings(BaseModel):
    """Base of the settings models: flat fields made with `setting`, all with defaults.

    Construction raises one `UserError` that lists every offender: unknown names (with the nearest known one), wrong
    types, values out of range, and what `conflicts` yields. Text is taken for numbers and booleans too ("1e-4",
    "no", and "none" where a setting may be unset), since a command line and a recipe hold nothing else.

    Args:
        origins: field name -> where its value came from, for messages and `origin`.
        values: the fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Pairs of which one at most may be set: setting one puts the other's default aside.
    exclusive: ClassVar[tuple[tuple[str, str], ...]] = ()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, origins: Mapping[str, str] | None = None, /, **values: Any):
        origins = dict(origins or {})
        values = self._plain(values)
        for name, other in self._exclusive_both_ways():
            if values.get(name) is not None and other not in values:
                values[other] = None
                origins[other] = f"unset, as {name} is given"
        # A name with half a surrogate pair is one at which pydantic stops, before it looks at any other.
        problems = [Problem((name,), "there is no such setting") for name in values if _HALF.search(name)]
        wrong = {problem.fields[0] for problem in problems}
        values = {name: value for name, value in values.items() if name not in wrong}
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems += self._field_problems(error, values)
            wrong = {problem.fields[0] for problem in problems}
            # Every field has a default, so that the rest makes a whole object, on which conflicts can be sought.
            super().__init__(**{name: value for name, value in values.items() if name not in wrong})
        self._origins = {name: origins.get(name, "given") for name in values}
        problems += [problem for problem in self._all_conflicts() if wrong.isdisjoint(problem.fields)]
        if problems:
            raise UserError(_report(problems, origins))

    def __eq__(self, other: object) -> bool:
        # Where a value came from is no part of what the settings are.
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    def origin(self, field: str) -> str:
        """Where the value of `field` came from: a flag, a recipe and its line, "given" (in Python), or "default"."""
        return self._origins.get(field, "default")

    def conflicts(self) -> Iterator[Problem]:
        """Combinations of values, each allowed alone, that make no sense together."""
        return iter(())

    @classmethod
    def layered(cls, layers: Iterable[tuple[Mapping[str, Any], Mapping[str, str]]]) -> Settings:
        """Settings from (values, origins) layers, the later over the earlier.

        A layer that sets one of an `exclusive` pair removes the other from the layers below it.
        """
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for layer_values, layer_origins in layers:
            layer_values = cls._plain(layer_values)
            for name, other in cls._exclusive_both_ways():
                if layer_values.get(name) is not None and other not in layer_values:
                    values.pop(other, None)
            values.update(layer_values)
            origins.update(layer_origins)
        return cls(origins, **values)

    @classmethod
    def _exclusive_both_ways(cls) -> Iterator[tuple[str, str]]:
        for one, other in cls.exclusive:
            yield one, other
            yield other, one

    @classmethod
    def holding(cls, kind: str) -> list[str]:
        """The fields whose `holds` is `kind`."""
        return [name for name, field in cls.model_fields.items() if field.json_schema_extra["holds"] == kind]

    @classmethod
    def written(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as the command line and recipes hold them, read: their texts unescaped."""
        texts = cls.holding(TEXT)
        return {name: unescaped(value) if name in texts and isinstance(value, str) else value
                for name, value in values.items()}

    def recipe(self) -> dict[str, Any]:
        """All settings as a recipe holds them: `written` turned round."""
        texts = self.holding(TEXT)
        return {name: escaped(value) if name in texts and isinstance(value, str) else value
                for name, value in self.model_dump().items()}

    @classmethod
    def _plain(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with "none" for fields that may be unset as None, and the home folder for the `~` of paths."""
        paths = cls.holding(PATH)
        plain = {}
        for name, value in values.items():
            if isinstance(value, str) and name in cls.model_fields:
                if value.lower() in ("none", "null") and type(None) in get_args(cls.model_fields[name].annotation):
                    value = None
                elif name in paths:
                    value = home_expanded(value)
            plain[name] = value
        return plain

    def _all_conflicts(self) -> Iterator[Problem]:
        for one, other in self.exclusive:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                yield Problem((one, other), f"cannot be given together with {other}; leave one of the two out")
        yield from self.conflicts()

    @classmethod
    def _field_problems(cls, error: ValidationError, values: Mapping[str, Any]) -> Iterator[Problem]:
        seen = set()
        for entry in error.errors(include_url=False):
            name = str(entry["loc"][0])
            if name in seen:  # a union reports each of its members
                continue
            seen.add(name)
            if entry["type"] == "extra_forbidden":
                yield Problem((name,), "there is no such setting" + did_you_mean(nearest(name, cls.model_fields)))
            elif entry["type"] == "value_error":  # from a validator of the model's own
                yield Problem((name,), str(entry["ctx"]["error"]))
            elif entry["type"] == "string_unicode":
                yield Problem((name,), f"expected text in UTF-8, found {_shown(values[name])}")
            else:
                expected = expectation(cls.model_fields[name])
                yield Problem((name,), f"expected {expected}, found {_shown(values[name])}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name of `known` that `name` was probably meant to be, dashes and underscores being equal, or None."""
    plain = {candidate.replace("_", "-").lower(): candidate for candidate in known}
    name = name.replace("_", "-").lower()
    elsewhere = NAMES_ELSEWHERE.get(name.replace("-", "_"), "").replace("_", "-")
    near = [elsewhere, *difflib.get_close_matches(name, plain, n=1)]
    return next((plain[candidate] for candidate in near if candidate in plain), None)


def did_you_mean(name: str | None) -> str:
    """The end of a message about an unknown name, given what `nearest` found."""
    return f"; did you mean {name}?" if name else ""


def expectation(field: FieldInfo) -> str:
    """What a right value of `field` looks like, in words: "a whole number of at least 1, or none"."""
    words = (field.json_schema_extra or {}).get("expected")
    if words is None:
        members = get_args(field.annotation) if get_origin(field.annotation) is Union else (field.annotation,)
        kind = next(member for member in members if member is not type(None))
        if get_origin(kind) is Literal:
            words = "one of " + ", ".join(get_args(kind))
        else:
            words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
            words += _limits(field)
    return words + (", or none" if type(None) in get_args(field.annotation) else "")


def _limits(field: FieldInfo) -> str:
    limits = {}
    for item in field.metadata:
        for name in ("ge", "gt", "le", "lt", "min_length"):
            if getattr(item, name, None) is not None:
                limits[name] = getattr(item, name)
    if "min_length" in limits:
        return " that is not empty"
    low = f"at least {limits['ge']}" if "ge" in limits else f"above {limits['gt']}" if "gt" in limits else ""
    high = f"at most {limits['le']}" if "le" in limits else f"below {limits['lt']}" if "lt" in limits else ""
    both = " and ".join(part for part in (low, high) if part)
    return f", {both}" if both else ""


def _report(problems: list[Problem], origins: Mapping[str, str]) -> str:
    lines = ["1 setting cannot be used:" if len(problems) == 1 else f"{len(problems)} settings cannot be used:"]
    for problem in problems[:SHOWN_PROBLEMS]:
        name = problem.fields[0]
        where = f" ({origins[name]})" if origins.get(name) else ""
        lines.append(f"  {_shorten(name)}{where}: {problem.text}")
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return _shorten(json.dumps(value, ensure_ascii=True, default=repr))


def _shorten(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def home_expanded(path: str) -> str:
    """`path` with the home folder for the `~` it begins with, which a shell leaves alone in `--output=~/x`. A file that
    is itself named so is written `./~`."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # no user has such a name, and no file either
        return path


def unescaped(text: str) -> str:
    """A text from the command line or a recipe: `\\n` is a line break, `\\t` a tab, `\\\\` a backslash; any other
    backslash stands for itself."""
    return _ESCAPE.sub(lambda found: _ESCAPES[found[1]], text)


def escaped(text: str) -> str:
    """What `unescaped` makes `text` of. Line breaks stay, as YAML can write them."""
    return text.replace("\\", r"\\")


def names(text: str) -> list[str]:
    """The names in a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def checked_list(text: str, known: Iterable[str]) -> str:
    """
    Raises:
        ValueError: a name that is not known, or none.
    """
    wrong = [name for name in names(text) if name not in known]
    if wrong or not names(text):
        hint = did_you_mean(nearest(wrong[0], known)) if wrong else ""
        raise ValueError(f"expected some of {', '.join(known)}, found {', '.join(wrong) or 'none'}{hint}")
    return text
