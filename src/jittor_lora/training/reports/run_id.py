"""The id of a run at a service, kept in the run folder so that a resumed run continues there."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import write_json
from jittor_lora.files.untrusted import load_json, read_input

FILE = "ids.json"
LARGEST = 64 << 10  # bytes
_ID = re.compile(r"[0-9a-f]{16}")


def run_id(folder: Path, destination: str) -> str:
    """The id at `destination` of the run whose reports are in `folder`, made if there is none yet.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    path, known = folder / FILE, {}
    if path.exists():
        try:
            known = load_json(read_input(path, LARGEST))
        except ValueError as error:
            raise UserError(f"{path}: {error}. Remove the file to begin a new run at {destination}.") from error
        if not isinstance(known, dict) or not all(isinstance(i, str) and _ID.fullmatch(i) for i in known.values()):
            raise UserError(f"{path}: expected ids of 16 hexadecimal digits by destination. Remove the file to begin "
                            f"a new run at {destination}.")
    if destination not in known:
        known[destination] = secrets.token_hex(8)
        write_json(path, known)
    return known[destination]
