"""Models from the Hugging Face Hub and from ModelScope: only the files that are used, with a time limit.

The libraries read their own settings: huggingface_hub HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_HOME and HF_TOKEN;
modelscope ModelScope's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Callable

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import sha256_of
from jittor_lora.files.hub_access import Unavailable, answered, reason
from jittor_lora.formats.hugging_face import read_json

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "prompting.json",
)
PYTORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
NO_WEIGHTS = "weights in the safetensors format or in PyTorch's"


def cached(repository: str) -> Path | None:
    """The model in the Hub's local cache, None if it is absent or incomplete. Never uses the network."""
    import huggingface_hub  # here, because it is slow to import and most commands do without

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(FILES), local_files_only=True))
    except Exception:  # the exception for an absent model differs between versions
        return None
    return None if _missing(folder) else folder


def reach(repository: str, seconds: float) -> None:
    """Ask the Hub for the model's description.

    Raises:
        Unavailable: no answer within `seconds`, or there is no such model.
    """
    import huggingface_hub

    answered(lambda: huggingface_hub.HfApi().model_info(repository, timeout=seconds), seconds)


def download(repository: str) -> Path:
    """Fetch the model into the Hub's cache, with its progress bars.

    Raises:
        Unavailable: it cannot be fetched, or lacks files that are needed.
    """
    import huggingface_hub

    try:
        folder = _with_weights(lambda names: huggingface_hub.snapshot_download(repository, allow_patterns=names))
    except Exception as error:  # the library's, its HTTP client's and the socket's
        raise Unavailable(reason(error)) from error
    _check_sums(folder)
    return _whole(folder)


def download_from_modelscope(model: str) -> Path:
    """Fetch a model into ModelScope's cache, with its progress bars.

    Raises:
        Unavailable: the package `modelscope` is not installed, or the model cannot be fetched or lacks files that
            are needed.
    """
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise Unavailable("the package modelscope is not installed (pip install modelscope)") from error
    try:
        folder = _with_weights(lambda names: snapshot_download(model, allow_patterns=names))
    except Exception as error:  # the library's, its HTTP client's and the socket's
        raise Unavailable(reason(error)) from error
    return _whole(folder)


def _with_weights(fetch: Callable[[list[str]], str]) -> Path:
    """Fetch the files of a model; PyTorch's weights only where there are no others."""
    folder = Path(fetch(list(FILES)))
    return Path(fetch([*FILES, *PYTORCH_FILES])) if _missing(folder) == NO_WEIGHTS else folder


def _check_sums(folder: Path) -> None:
    """Compare checksums, as the library compares only sizes. Its cache names large files by their SHA-256 sums.

    Raises:
        Unavailable: a file has another checksum; it is removed.
    """
    damaged = []
    for path in sorted(folder.iterdir()):
        kept = Path(os.path.realpath(path))
        if re.fullmatch(r"[0-9a-f]{64}", kept.name) and sha256_of(kept) != kept.name:
            damaged.append(path.name)
            kept.unlink()
            path.unlink()
    if damaged:
        raise Unavailable(f"{', '.join(damaged)}: the SHA-256 sum differs from the Hub's; the download was removed, "
                          "try again")


def _whole(folder: Path) -> Path:
    missing = _missing(folder)
    if missing:
        raise Unavailable(f"it has no {missing}")
    return folder


def _missing(folder: Path) -> str:
    """What the folder lacks of a model, as after an interrupted download; empty if it is complete."""
    config = _json(folder / "config.json")
    if not config:
        return "config.json"
    if not any(_has_weights(folder, name) for name in ("model.safetensors", "pytorch_model.bin")):
        return NO_WEIGHTS
    has_vocabulary = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    # A cache with GPT-2's weights alone is enough: its tokenizer is in this package.
    is_gpt2 = (config.get("model_type"), config.get("vocab_size")) == ("gpt2", 50257)
    if not (has_vocabulary or is_gpt2 or any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))):
        return "tokenizer.json, no vocab.json with merges.txt, and no vocab.txt"
    return ""


def _has_weights(folder: Path, name: str) -> bool:
    """Whether there is the file, or all shards in its index."""
    if (folder / name).is_file():
        return True
    parts = _json(folder / f"{name}.index.json").get("weight_map")
    names = set(map(str, parts.values())) if isinstance(parts, dict) else set()
    return bool(names) and all(os.path.isfile(folder / one) for one in names)


def _json(path: Path) -> dict:
    """The object in a JSON file, empty if the file is missing or malformed."""
    try:
        return read_json(path)
    except UserError:
        return {}
