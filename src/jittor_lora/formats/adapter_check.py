"""Checks of an adapter's two files, which are untrusted: location, size, JSON, the type of every field, the name and
shape of every tensor."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from jittor_lora.errors import UserError
from jittor_lora.files.finite import not_finite
from jittor_lora.files.patterns import wrong_amount, wrong_pattern
from jittor_lora.files.untrusted import open_input, unique_keys
from jittor_lora.formats.adapter_files import OLD_WEIGHTS_FILE
from jittor_lora.formats.hugging_face import read_json, shorten
from jittor_lora.formats.safetensors_file import SafetensorsFile
from jittor_lora.formats.tensor_file import FLOAT_TYPES, TensorFile
from jittor_lora.formats.tensor_names import WRAPPERS, without_adapter_name, wrapper_note, wrapper_of
from jittor_lora.formats.torch_file import TorchFile
from jittor_lora.lora.config import MAX_RANK

# Far above any adapter in use: the largest published ones have a few thousand tensors.
LARGEST_CONFIG = 2 << 20  # bytes
LONGEST_HEADER = 4 << 20  # bytes
LARGEST_NUMBER = 1e9  # of alpha
LONGEST_TEXT = 1024  # characters
LONGEST_NAME = 256  # of a tensor
MOST_NAMES = 10_000
MOST_PATTERNS = 2_000
MOST_SAVED = 1_000  # modules
MOST_TOKENS = 1 << 20
LARGEST_TOKEN = 1 << 24
MOST_DIMENSIONS = 5  # of a three-dimensional convolution's kernel
MOST_LISTS = 16  # of blocks in a model
SHOWN = 20  # offenders in a message

PREFIX = "base_model.model."
_MATCHED = ("rank_pattern", "alpha_pattern")  # at the ends of modules' names
COUNTER = ".num_batches_tracked"  # which PyTorch's BatchNorm saves and Jittor's does not have
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


# --- files -----------------------------------------------------------------------------------------------------------


def regular_file(path: Path) -> Path:
    """The path, if it is a file inside its folder, or among the blobs that the Hub's cache links to.

    Raises:
        UserError: it does not exist; or is a folder, a pipe or a device, or a link out of the folder.
    """
    open_input(path).close()
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    of_the_hub = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if home not in target.parents and not of_the_hub:
        raise UserError(f"{path}: a link that leads out of its folder, to {target}. Copy the file itself there.")
    return path


def open_weights(path: Path, numbers: bool = True) -> TensorFile:
    """An adapter's tensors, after checking all names and shapes; without that file those of PEFT's older
    adapter_model.bin beside it.

    Args:
        numbers: also check that all numbers are finite.

    Raises:
        UserError: no such file, a damaged one, or tensors that no adapter has; all are listed.
    """
    file = _opened(path)
    path = file.path
    file.entries = {name: entry for name, entry in file.entries.items() if not name.endswith(COUNTER)}
    _unwrap(file)
    wrong = list(_wrong_entries(file))
    if numbers and not wrong:
        wrong = [f"{show(name)}: holds numbers that are not finite ({what})" for name, what in not_finite(file).items()]
    if wrong:
        raise UserError(f"{path}:\n  {shorten(wrong, SHOWN, separator=chr(10) + '  ')}")
    if not file:
        raise UserError(f"{path}: holds no arrays.")
    return file


def _opened(path: Path) -> TensorFile:
    old = path.with_name(OLD_WEIGHTS_FILE)
    if not os.path.lexists(path) and os.path.lexists(old):
        try:
            return TorchFile(regular_file(old))
        except UserError as error:
            raise UserError(f"{error}\nIf you trust the file, save the adapter again where PEFT can load it, with "
                            "save_pretrained(…, safe_serialization=True).") from error
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file.")
    return open_safetensors(path)


def open_safetensors(path: Path) -> SafetensorsFile:
    """An adapter's file of tensors.

    Raises:
        UserError: no such file, a damaged one, or one with a header that no adapter has.
    """
    with open_input(regular_file(path)) as stream:
        length = int.from_bytes(stream.read(8), "little")
    if LONGEST_HEADER < length <= os.path.getsize(path):
        raise UserError(f"{path}: header: expected at most {LONGEST_HEADER:,} bytes for an adapter; found {length:,}.")
    return SafetensorsFile(path)


def _unwrap(file: TensorFile) -> None:
    """Rename the tensors as PEFT saves them, and report the prefixes that were removed."""
    if not file.entries:
        return
    wrapper = wrapper_of(file.entries, lambda name: name.startswith(PREFIX))
    entries = {name[len(wrapper) :]: entry for name, entry in file.entries.items()}
    inner = next((inner for inner in WRAPPERS if all(name.startswith(PREFIX + inner) for name in entries)), "")
    entries, adapter = without_adapter_name({name.replace(inner, "", 1): entry for name, entry in entries.items()})
    if len(entries) < len(file.entries):
        return  # names that only the prefix tells apart
    file.entries = entries
    for prefix in filter(None, (wrapper, inner)):
        print(f"{file.path}: {wrapper_note(prefix)}", file=sys.stderr)
    if adapter:
        print(f"{file.path}: the tensors' names contain the adapter's name, {adapter}, which is left out; PEFT's "
              "save_pretrained does not write it.", file=sys.stderr)


def _wrong_entries(file: TensorFile) -> Iterator[str]:
    for name, entry in file.entries.items():
        if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            yield f"{show(name)}: expected a module's name, of words and dots, of at most {LONGEST_NAME} characters"
        elif not name.startswith(PREFIX):
            yield f"{name}: expected a name that starts with {PREFIX}"
        elif entry.dtype not in FLOAT_TYPES:
            yield f"{name}: expected one of {', '.join(FLOAT_TYPES)}, found {entry.dtype}"
        elif 0 in entry.shape or not 1 <= len(entry.shape) <= MOST_DIMENSIONS:
            yield f"{name}: expected a non-empty array of 1 to {MOST_DIMENSIONS} dimensions, found shape {entry.shape}"


# --- configuration ---------------------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """An adapter's settings as in the file, with the types of all fields of PEFT's LoraConfig checked.

    Raises:
        UserError: no such file, not JSON, not an object, a duplicate key, or fields of the wrong type; all are listed.
    """
    return checked_config(path, read_object(path))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in an adapter's file of settings.

    Raises:
        UserError: no such file, too large, not JSON, not an object, or a duplicate key.
    """
    if os.path.getsize(regular_file(path)) > LARGEST_CONFIG:
        raise UserError(f"{path}: expected at most {LARGEST_CONFIG:,} bytes of settings; "
                        f"found {os.path.getsize(path):,}.")
    return read_json(path, unique_keys(show))


def checked_config(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, an adapter's settings in PEFT's form, which were read from `path`.

    Raises:
        UserError: fields of the wrong type; all are listed.
    """
    wrong = []
    for name, check in _FIELDS.items():
        problem = check(values[name]) if name in values else None
        if problem:
            wrong.append(f"{name}: {problem}" + f", found {show(values[name])}")
    if values.get("peft_type") != "LORA":
        wrong.append(f"peft_type: expected LORA, found {show(values.get('peft_type'))}")
    if values.get("target_modules") is None:
        wrong.append("target_modules: expected names or a regular expression, found None")
    if wrong:
        raise UserError(f"{path}:\n  {shorten(wrong, SHOWN, separator=chr(10) + '  ')}")
    return values


def check_effort(path: Path, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """
    Args:
        path: of the settings `values`, which `read_config` returned.
        names: of the modules to which their patterns are applied.

    Raises:
        UserError: matching may take too long; all the settings with such patterns are named.
    """
    problems = {name: wrong_amount(values.get(name) or (), names, at_parts=True) for name in _MATCHED}
    wrong = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    if wrong:
        raise UserError(f"{path}:\n  " + "\n  ".join(wrong))


def show(value: Any, most: int = 80) -> str:
    """A value of a file for a message: its Python repr, so that no control character reaches the terminal."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a number of more than 70 digits"
    if isinstance(value, (list, dict)) and len(value) > 50:
        return f"{type(value).__name__} of {len(value):,} entries"
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"


# Each returns what is expected if the value is wrong, else None.
Check = Callable[[Any], Optional[str]]


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "expected true or false"


def _text(value: Any) -> str | None:
    if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_TEXT:
        return None
    return f"expected a string of up to {LONGEST_TEXT} printable characters"


def _rank(value: Any) -> str | None:
    if type(value) is not int:
        return "expected a whole number"
    return None if 1 <= value <= MAX_RANK else f"expected a whole number from 1 to {MAX_RANK}"


def _number(value: Any) -> str | None:
    # Whole numbers in JSON may exceed the range of float, so they are compared, never converted.
    return None if type(value) in (int, float) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER else "expected a number"


def _alpha(value: Any) -> str | None:
    return _number(value) or (None if value > 0 else "expected a number above 0")


def _dropout(value: Any) -> str | None:
    return _number(value) or (None if 0 <= value < 1 else "expected a number from 0 to below 1")


def _layers(value: Any) -> str | None:
    numbers = value if isinstance(value, list) else [value]
    good = len(numbers) <= MOST_NAMES and all(type(n) is int and 0 <= n < MOST_NAMES for n in numbers)
    return None if good else "expected numbers of layers"


def _tokens(value: Any) -> str | None:
    good = isinstance(value, list) and len(value) <= MOST_TOKENS and all(
        type(token) is int and 0 <= token < LARGEST_TOKEN for token in value)
    return None if good else f"expected a list of up to {MOST_TOKENS:,} token ids"


def _tokens_by_module(value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > MOST_SAVED:
        return _tokens(value)
    return next(filter(None, (_text(key) or _tokens(tokens) for key, tokens in value.items())), None)


def _names(value: Any, most: int = MOST_NAMES) -> str | None:
    good = isinstance(value, list) and len(value) <= most and not any(map(_text, value))
    return None if good else f"expected a list of up to {most:,} names"


def _names_or_pattern(value: Any) -> str | None:
    if isinstance(value, str) and value:
        return wrong_pattern(value)
    return None if value and not _names(value) else "expected names or a regular expression"


def _patterns(value: Any) -> str | None:
    if not isinstance(value, (str, list)) or isinstance(value, list) and len(value) > MOST_LISTS:
        return f"expected a name or a list of up to {MOST_LISTS} names"
    return next(filter(None, map(wrong_pattern, [value] if isinstance(value, str) else value)), None)


def _pattern_to(check: Check) -> Check:
    def problem(value: Any) -> str | None:
        if not isinstance(value, dict) or len(value) > MOST_PATTERNS:
            return f"expected an object of up to {MOST_PATTERNS:,} module names"
        return next((text for key, one in value.items() for text in [wrong_pattern(key) or check(one)] if text), None)
    return problem


_FIELDS: dict[str, Check] = {
    "r": _rank,
    "lora_alpha": _alpha,
    "lora_dropout": _dropout,
    "target_modules": _or_null(_names_or_pattern),
    "exclude_modules": _or_null(lambda value: None if value == [] else _names_or_pattern(value)),
    "fan_in_fan_out": _flag,
    "bias": lambda value: None if value in ("none", "all", "lora_only") else "expected none, all or lora_only",
    "use_rslora": _or_null(_flag),
    "use_dora": _or_null(_flag),
    "lora_bias": _or_null(_flag),
    "ensure_weight_tying": _or_null(_flag),
    "trainable_token_indices": _or_null(_tokens_by_module),
    "modules_to_save": _or_null(lambda value: _names(value, MOST_SAVED)),
    "init_lora_weights": _or_null(lambda value: None if isinstance(value, bool) else _text(value)),
    "layers_to_transform": _or_null(_layers),
    "layers_pattern": _or_null(_patterns),
    "rank_pattern": _or_null(_pattern_to(_rank)),
    "alpha_pattern": _or_null(_pattern_to(_alpha)),
    "base_model_name_or_path": _or_null(_text),
    "revision": _or_null(_text),
    "task_type": _or_null(_text),
    "peft_version": _or_null(_text),
    "inference_mode": _or_null(_flag),
}
