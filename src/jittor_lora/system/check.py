"""One line of `jittor-lora doctor`."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, MISSING = "ok", "warning", "missing"


@dataclass(frozen=True)
class Check:
    """One line of the table. `status`: ok, warning (runs anyway) or missing (cannot run); `mend`: how to fix it."""

    name: str
    status: str
    found: str
    mend: str = ""
