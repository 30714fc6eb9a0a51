"""The base as GGUF files, one for each storage format that is measured."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from jittor_lora.benchmark import workloads
from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_metadata import as_llama_cpp_has_it
from jittor_lora.formats.gguf_model import metadata_of, plan_tensors
from jittor_lora.formats.gguf_types import name_of
from jittor_lora.formats.gguf_writer import write_gguf

OWN = "file"  # the base's own GGUF file
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_LOOKED_UP = ("position_embd.weight", _EMBEDDING)  # of which a token reads one row


class Files:
    """
    Args:
        base: a Hugging Face folder.
        own: the GGUF file that it was made from, if there is one.
        folder: where the others are written, when they are first asked for.
    """

    def __init__(self, base: Path, own: Path | None, folder: Path):
        self.base, self.own, self.folder = base, own, folder

    def path(self, name: str) -> Path:
        """The file in a format.

        Raises:
            UserError: the base's own is asked for and it is no GGUF file; or llama.cpp cannot compute this model.
        """
        if name == OWN:
            if self.own is None:
                raise UserError("--formats file: expected a GGUF file as --base; found a Hugging Face model. Name "
                                "other formats.")
            return self.own
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            self._write(path, name)
        return path

    def title(self, name: str) -> str:
        """As shown in tables: of the base's own file the type of most weights of its layers."""
        if name != OWN:
            return name
        sizes: Counter[str] = Counter()
        for stored, entry in GgufFile(self.path(name)).entries.items():
            if stored.startswith("blk.") and len(entry.shape) == 2:
                sizes[name_of(entry.kind)] += prod(entry.shape)
        return f"{sizes.most_common(1)[0][0].lower()}, its file"

    def read_per_token(self, name: str) -> int:
        """Bytes of the matrices that every token meets."""
        entries = GgufFile(self.path(name)).entries
        skipped = _LOOKED_UP if _HEAD in entries else _LOOKED_UP[:1]
        return sum(entry.end - entry.begin for stored, entry in entries.items()
                   if len(entry.shape) == 2 and stored not in skipped)

    def _write(self, path: Path, name: str) -> None:
        checkpoint, tokenizer = workloads.open_base(self.base)
        config = as_llama_cpp_has_it(checkpoint.config)
        plans = plan_tensors(config, checkpoint.tensors, name, None, lambda _: False)
        if name.startswith("q4"):  # the embedding and the head stay in eight bits, as in most files
            wider = plan_tensors(config, checkpoint.tensors, "q8_0", None, lambda _: False)
            plans = [wide if plan.name in (_EMBEDDING, _HEAD) else plan for plan, wide in zip(plans, wider)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as stream:
            write_gguf(stream, config.family, metadata_of(config, tokenizer, name, None, "benchmark", None), plans)
