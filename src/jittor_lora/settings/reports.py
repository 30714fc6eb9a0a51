"""Where the metrics of a run may also go, besides the files of its folder."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any, Optional, Sequence

from pydantic import AfterValidator, BeforeValidator

from jittor_lora.errors import UserError
from jittor_lora.settings.base import setting
from jittor_lora.settings.text import checked_list, names

# Destination → its package. Each is a module of training/reports/ and an extra in pyproject.toml.
PACKAGES = {"tensorboard": "tensorboardX", "swanlab": "swanlab", "wandb": "wandb"}


def _read(value: Any) -> Any:
    return names(value) if isinstance(value, str) else value


def _known(value: Optional[list[str]]) -> Optional[list[str]]:
    return None if value is None else names(checked_list(",".join(value), PACKAGES))


Destinations = Annotated[Optional[list[str]], BeforeValidator(_read), AfterValidator(_known)]


def report_to_setting(group: str) -> Any:
    return setting(None, group, f"also send the metrics to some of {','.join(PACKAGES)}; by default none",
                   expected=f"some of {', '.join(PACKAGES)}")


def from_tensorboard(value: Any) -> Optional[list[str]]:
    """The value of the former setting `tensorboard`, true or false, as one of `report_to`."""
    return ["tensorboard"] if str(value).lower() in ("true", "yes", "on", "1", "y", "t") else None


def require_packages(destinations: Optional[Sequence[str]]) -> None:
    """
    Raises:
        UserError: the package of a destination is not installed; all are listed.
    """
    missing = [name for name in destinations or () if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise UserError(f"report_to: {', '.join(missing)}: expected the package, found none. Install it with: pip "
                        f"install {' '.join(PACKAGES[name] for name in missing)}; or leave it out of --report-to.")
