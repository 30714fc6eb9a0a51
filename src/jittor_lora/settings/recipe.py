"""Recipes: YAML files of settings, the shipped ones available by name.

A recipe is one flat mapping, so little of YAML is needed and the rest is refused: anchors and aliases (which can expand
without bound), tags, several documents, repeated keys, deep nesting. Scalars stay text, for the settings to interpret
by the type of the field: `1e-4` is a number and a file called `no` stays a file, whatever YAML 1.1 says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import read_input
from jittor_lora.settings.names import did_you_mean, nearest

LARGEST_RECIPE = 64 * 1024  # bytes
DEEPEST_NESTING = 3
SHIPPED = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """The names of the recipes shipped with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe, given as a path or as the name of a shipped one; an existing file takes precedence.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    shipped = SHIPPED / f"{name}.yaml"
    if path.is_dir():
        raise UserError(f"--config {name}: expected a recipe, a YAML file; found a folder.")
    if path.exists():
        return path
    if name in names():
        return shipped
    raise UserError(f"--config {name}: no such file, and no shipped recipe of that name"
                    f"{did_you_mean(nearest(name, names()))}\nShipped recipes: {', '.join(names())}.")


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a recipe, and the origin of each ("file, line n").

    Values are text, None (`null`, `~` or nothing), or lists and mappings of these.

    Raises:
        UserError: the file cannot be read, or is not one flat mapping in UTF-8.
    """
    content = read_input(path, LARGEST_RECIPE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, found the byte 0x{content[error.start]:02x} "
                        f"at position {error.start}. Save the recipe as UTF-8.") from error
    try:
        _refuse_unneeded_yaml(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from error
    except (ValueError, OverflowError) as error:  # from numbers that the library does not check
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if root is None:
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected lines of the form `setting: value`, found {_kind(root)}.")
    values = _plain(path, root)
    origins = {key.value: f"{path}, line {key.start_mark.line + 1}" for key, _ in root.value}
    return values, origins


def _refuse_unneeded_yaml(path: Path, text: str) -> None:
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}, line {event.start_mark.line + 1}"
        if getattr(event, "anchor", None) is not None:
            raise UserError(f"{where}: anchors and aliases (& and *) are not allowed in a recipe; "
                            "write the value out, or put it in quotes if it starts with & or *.")
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{where}: tags are not allowed in a recipe (found {event.tag}); "
                            "put the value in quotes if it starts with !.")
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise UserError(f"{where}: expected one document in a recipe, found a second one (---).")
        if depth > DEEPEST_NESTING:
            raise UserError(f"{where}: expected `setting: value` lines, found deeply nested values.")


def _plain(path: Path, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(path, node)
    if node.style is None and node.value in ("", "~", "null", "Null", "NULL"):
        return None
    return node.value


def _mapping(path: Path, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    values: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}, line {line}: expected the name of a setting before the colon, "
                            f"found {_kind(key)}.")
        if key.value in values:
            raise UserError(f"{path}, line {line}: {key.value} is set twice, first in line {lines[key.value]}; "
                            "leave one of the two out.")
        lines[key.value] = line
        values[key.value] = _plain(path, value)
    return values


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "plain text"


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    return f"{problem}, line {mark.line + 1}" if mark else f"{problem}"
