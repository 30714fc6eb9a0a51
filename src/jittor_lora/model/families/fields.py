"""Typed access to the keys of a config.json."""

from __future__ import annotations

from typing import Any

# transformers' activation names → the function they compute
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
    "tanh": "tanh",
}

# Upper limits far above any published model of these families: a larger number is a damaged or hostile file.
MOST_VOCABULARY, MOST_WIDTH, MOST_LAYERS, MOST_HEADS, MOST_POSITIONS = 1 << 24, 1 << 18, 1024, 4096, 1 << 24


class Fields:
    """Typed access to one config.json that collects all problems and continues with defaults."""

    def __init__(self, config: dict):
        self.config = config
        self.problems: list[str] = []

    def problem(self, name: str, expected: str, found: Any) -> None:
        self.problems.append(f"{name}: expected {expected}; found {show(found)}")

    def integer(self, name: str, default: int | None, most: int, alias: str = "") -> int:
        """A whole number from 1 to `most`. An absent or null value is `default`; `alias` is a second accepted key."""
        if name not in self.config and alias in self.config:
            name = alias
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            self.problem(name, f"a whole number from 1 to {most}", value)
            return default or 1
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number strictly between the limits."""
        return self.number_value(name, self.config.get(name, default), default, low, high)

    def number_value(self, name: str, value: Any, default: float, low: float, high: float) -> float:
        if type(value) not in (int, float) or not low < value < high:
            self.problem(name, f"a number above {low:g} and below {high:g}", value)
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name, default)
        if type(value) is not bool:
            self.problem(name, "true or false", value)
            return default
        return value

    def only(self, name: str, supported: bool, reason: str) -> None:
        """A flag of which only one value, transformers' default, is implemented."""
        if self.config.get(name, supported) is not supported:
            self.problem(name, f"{str(supported).lower()} ({reason})", self.config[name])

    def absent(self, name: str, reason: str) -> None:
        if self.config.get(name) is not None:
            self.problem(name, f"none ({reason})", self.config[name])

    def activation(self, name: str, default: str, supported: tuple[str, ...]) -> str:
        value = self.config.get(name, default)
        activation = _ACTIVATIONS.get(value) if isinstance(value, str) else None
        if activation not in supported:
            names = [known for known, meaning in _ACTIVATIONS.items() if meaning in supported]
            self.problem(name, f"one of {', '.join(names)}", value)
            return supported[0]
        return activation

    def tokens(self, name: str, default: int | None, vocab_size: int) -> tuple[int, ...]:
        """Token ids within the vocabulary."""
        found = token_ids(self.config.get(name, default))
        if found is None:
            self.problem(name, "a token id, a list of them, or null", self.config[name])
        return tuple(token for token in found or () if 0 <= token < vocab_size)


def token_ids(value: Any) -> list[int] | None:
    """The ids in `eos_token_id` and similar: of a number, a list of numbers or null; None for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return ids if all(type(token) is int for token in ids) else None


def show(value: Any) -> str:
    """One short line for an arbitrary JSON value."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
