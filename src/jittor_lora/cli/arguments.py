"""Paths on the command line: `~` expanded, and the folder behind a name."""

from __future__ import annotations

from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_files import CONFIG_FILE, may_be_adapter
from jittor_lora.settings.text import home_expanded


def path_argument(text: str) -> Path:
    """A path with `~` expanded, for arguments that are not settings."""
    return Path(home_expanded(text))


def named_path_argument(text: str) -> str:
    """The same for `[NAME=]PATH`."""
    name, _, path = text.partition("=")
    return f"{name}={home_expanded(path)}" if path.startswith("~") else home_expanded(text)


def find_adapter(name: str, flag_text: str = "") -> Path:
    """The folder of an adapter's files, or its GGUF file: `name`, or `adapter/` in it if it is a run folder.

    Args:
        flag_text: the flag of `name`, for the message.

    Raises:
        UserError: no adapter was found.
    """
    folders = [Path(name), Path(name, "adapter")]
    for folder in folders:
        if may_be_adapter(folder):
            return folder
    raise UserError(f"{flag_text}{name}: expected an adapter folder, with {CONFIG_FILE}, the run folder of "
                    f"train, or a GGUF file; found {_found(folders[0])}.")


def _found(path: Path) -> str:
    return "neither in it" if path.is_dir() else "another file" if path.exists() else "no such folder"


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
