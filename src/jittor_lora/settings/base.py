"""Typed settings: one frozen model per verb, all wrong values reported at once, the origin of every value known."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from jittor_lora.errors import UserError
from jittor_lora.settings.names import did_you_mean, nearest
from jittor_lora.settings.problems import Problem, expectation, report, shown
from jittor_lora.settings.text import escaped, home_expanded, unescaped

PATH, TEXT, VERBATIM = "path", "text", "verbatim"
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def setting(default: Any, group: str, description: str, *, expected: str | None = None, holds: str | None = None,
            lora: str | None = None, **limits: Any) -> Any:
    """A field with its group and one-line description, which are also the help of its flag.

    Args:
        expected: the accepted values in words, where type and `limits` (`ge`, `le`, `gt`, `lt`) do not say it.
        holds: PATH, a path, whose `~` is expanded; or how a text is read from the command line and recipes: TEXT, with
            `\\n` for a line break (see `text.unescaped`), or VERBATIM, as it stands.
        lora: the field of `LoraConfig` that it sets.
    """
    return Field(default, description=description,
                 json_schema_extra={"group": group, "expected": expected, "holds": holds, "lora": lora}, **limits)


class Settings(BaseModel):
    """Base class of all settings: flat fields created by `setting`, each with a default.

    Construction raises one `UserError` that lists every offender: unknown names (with the nearest known one), wrong
    types, values out of range, and whatever `conflicts` yields. Numbers and booleans may be given as text ("1e-4",
    "no", and "none" where a setting may be unset), since a command line and a recipe hold nothing else.

    Args:
        origins: field name -> where its value came from, for messages and `origin`.
        values: the fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Pairs of which at most one may be set: setting one unsets the default of the other.
    exclusive: ClassVar[tuple[tuple[str, str], ...]] = ()

    # Former settings, still accepted: name -> (its successor, the successor's value for its value).
    former: ClassVar[dict[str, tuple[str, Callable[[Any], Any]]]] = {}

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, origins: Mapping[str, str] | None = None, /, **values: Any):
        values, origins = self._current(values, origins or {})
        values = self._plain(values)
        for name, other in self._exclusive_both_ways():
            if values.get(name) is not None and other not in values:
                values[other] = None
                origins[other] = f"unset, as {name} is given"
        # pydantic stops at a name with a lone surrogate, before it looks at any other.
        problems = [Problem((name,), "no such setting") for name in values if _LONE_SURROGATE.search(name)]
        wrong = {problem.fields[0] for problem in problems}
        values = {name: value for name, value in values.items() if name not in wrong}
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems += self._field_problems(error, values)
            wrong = {problem.fields[0] for problem in problems}
            # Every field has a default, so the remaining ones form a complete object, to search for conflicts.
            super().__init__(**{name: value for name, value in values.items() if name not in wrong})
        self._origins = {name: origins.get(name, "given") for name in values}
        problems += [problem for problem in self._all_conflicts() if wrong.isdisjoint(problem.fields)]
        if problems:
            raise UserError(report(problems, origins))

    def __eq__(self, other: object) -> bool:
        # Settings are equal whatever the origin of their values.
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    def origin(self, field: str) -> str:
        """Where the value of `field` came from: a flag, a recipe and its line, "given" (in Python), or "default"."""
        return self._origins.get(field, "default")

    def conflicts(self) -> Iterator[Problem]:
        """Combinations of values, each valid alone, that make no sense together."""
        return iter(())

    @classmethod
    def layered(cls, layers: Iterable[tuple[Mapping[str, Any], Mapping[str, str]]]) -> Settings:
        """Settings from (values, origins) layers; later layers override earlier ones.

        A layer that sets one of an `exclusive` pair removes the other from the layers below it.
        """
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for layer_values, layer_origins in layers:
            layer_values, layer_origins = cls._current(layer_values, layer_origins)
            layer_values = cls._plain(layer_values)
            for name, other in cls._exclusive_both_ways():
                if layer_values.get(name) is not None and other not in layer_values:
                    values.pop(other, None)
            values.update(layer_values)
            origins.update(layer_origins)
        return cls(origins, **values)

    @classmethod
    def holding(cls, kind: str) -> list[str]:
        """The fields whose `holds` is `kind`."""
        return [name for name, field in cls.model_fields.items() if field.json_schema_extra["holds"] == kind]

    @classmethod
    def written(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as the command line and recipes spell them, with their texts unescaped."""
        texts = cls.holding(TEXT)
        return {name: unescaped(value) if name in texts and isinstance(value, str) else value
                for name, value in values.items()}

    def recipe(self) -> dict[str, Any]:
        """All settings as a recipe spells them, the inverse of `written`."""
        texts = self.holding(TEXT)
        return {name: escaped(value) if name in texts and isinstance(value, str) else value
                for name, value in self.model_dump().items()}

    @classmethod
    def _exclusive_both_ways(cls) -> Iterator[tuple[str, str]]:
        for one, other in cls.exclusive:
            yield one, other
            yield other, one

    @classmethod
    def _current(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Both with successors in place of former settings, unless those are given too."""
        values, origins = dict(values), dict(origins)
        for name in cls.former.keys() & values.keys():
            successor, converted = cls.former[name]
            warnings.warn(f"the setting {name} is now {successor}", DeprecationWarning, stacklevel=3)
            value, origin = values.pop(name), origins.pop(name, None)
            if successor not in values:
                values[successor] = converted(value)
                origins.update({} if origin is None else {successor: origin})
        return values, origins

    @classmethod
    def _plain(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with None for "none" where a field may be unset, and with `~` expanded in paths."""
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
                yield Problem((name,), "no such setting" + did_you_mean(nearest(name, cls.model_fields)))
            elif entry["type"] == "value_error":  # from one of the model's own validators
                yield Problem((name,), str(entry["ctx"]["error"]))
            elif entry["type"] == "string_unicode":
                yield Problem((name,), f"expected text in UTF-8, found {shown(values[name])}")
            else:
                yield Problem((name,), f"expected {expectation(cls.model_fields[name])}, found {shown(values[name])}")
