"""A base model with its adapters, ready to run."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Iterator, Mapping, Sequence, Union

import numpy as np

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.examples import Data
from jittor_lora.data.prompting import Choices, Prompting
from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.finite import all_finite, kinds
from jittor_lora.formats.adapter_files import CONFIG_FILE, may_be_adapter
from jittor_lora.formats.adapter_source import AdapterSource, open_adapter
from jittor_lora.formats.added_tokens import with_added_tokens
from jittor_lora.formats.base_record import BaseRecord, Fingerprint, read_record
from jittor_lora.formats.bases import ResolvedBase, WantedBase, load_base, resolve_base, say_on_stderr
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.formats.peft import load_adapter, save_adapter
from jittor_lora.formats.prompting import read_prompting, write_prompting
from jittor_lora.formats.prompting_choice import base_prompting, chosen_prompting, encoder_of
from jittor_lora.formats.quantised_base import in_precision
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.lora.adapter import Adapter
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import DEFAULT, Adapters, adapters_of, no_such_adapter
from jittor_lora.lora.merge import merge_error
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.config import is_conv1d
from jittor_lora.model.load import build_model
from jittor_lora.ops.blocks import Blocks, stored_in

Names = Union[str, Sequence[str]]


class Session:
    """A base model with its tokenizer and any number of named adapters.

    The base's weights are never changed: adapters are activated, deactivated and exchanged without reloading anything.

    Attributes:
        model: the network.
        tokenizer, checkpoint, base: what it was built from.
        fingerprint: of the base's weights (see `formats.base_record`), before they were quantised if they were; None if
            `load` did not load them.
        base_precision: as `load` was told.
        promptings: adapter name -> how its training put examples into texts, as far as known.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, checkpoint: Checkpoint, base: ResolvedBase,
                 fingerprint: str | None = None, base_precision: str = "auto"):
        self.model, self.tokenizer, self.checkpoint, self.base = model, tokenizer, checkpoint, base
        self.fingerprint, self.base_precision = fingerprint, base_precision
        self.promptings: dict[str, Prompting] = {}

    @cached_property
    def base_prompting(self) -> Prompting:
        """That of the base alone.

        Raises:
            UserError: as `formats.prompting_choice.base_prompting`.
        """
        return base_prompting(self.base, self.tokenizer)

    @property
    def prompting(self) -> Prompting:
        """That of the active adapter, as far as known, else of the base."""
        active = self.adapters.active
        return self.promptings.get(active[0], self.base_prompting) if len(active) == 1 else self.base_prompting

    @property
    def adapters(self) -> Adapters:
        """The adapters by name; `adapters.active` names the active ones."""
        return adapters_of(self.model)

    @property
    def adapter(self) -> Adapter | None:
        """The active adapter; None if there is none.

        Raises:
            UserError: several are active.
        """
        active = self.adapters.active
        if len(active) > 1:
            raise UserError(f"{', '.join(active)} are active together; name one, or activate one with set_adapter.")
        return self.adapters[active[0]] if active else None

    def choose_prompting(self, choices: Choices, date: str | None = None) -> Prompting:
        """`prompting`, unless something else is chosen; the tokenizer is set to it.

        Raises:
            UserError: as `formats.prompting_choice.chosen_prompting`.
        """
        return chosen_prompting(self.prompting, self.tokenizer, choices, date)

    def chat_encoder(self, prompting: Prompting, data: Data | None = None) -> ChatEncoder | None:
        """What encodes conversations; None for `data` that holds none.

        Raises:
            UserError: there is no chat template.
        """
        return encoder_of(prompting, self.tokenizer, data, self.base.name)

    def set_prompting(self, prompting: Prompting) -> None:
        """Record that of the active adapter, or without one, of the base."""
        if self.adapter is None:
            self.base_prompting = prompting
        else:
            self.promptings[self.adapter.name] = prompting

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the tokenizer's files, with those of the prompting, into the folder of a model."""
        self.tokenizer.save(folder)
        write_prompting(Path(folder), self.prompting)

    def add_adapter(self, config: LoraConfig, name: str = DEFAULT, seed: int = 42) -> Adapter:
        """Add a newly initialised adapter. The first one is active at once, others after `set_adapter`.

        Args:
            seed: of its random initialisation.

        Raises:
            UserError: the name is taken, or the settings do not fit this base.
        """
        return self.adapters.add(config, name, seed)

    def load_adapter(self, folder: str | Path | AdapterSource, name: str = DEFAULT) -> Adapter:
        """Add an adapter from a folder of PEFT, mlx-lm or litgpt, or a GGUF file; active as after `add_adapter`.

        If it was trained on a base with other weights, a note says so: this base may be a conversion of that one.

        Raises:
            UserError: it cannot be read, or is not for this base; everything that does not fit is listed.
        """
        if isinstance(folder, AdapterSource):
            return self._load(folder, name)
        folder = Path(folder)
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        if inside and not may_be_adapter(folder):
            raise UserError(f"{folder}: expected {CONFIG_FILE}; found folders with one: {', '.join(inside)}. "
                            "Name one of them.")
        return self._load(open_adapter(folder), name)

    def load_adapters(self, folder: str | Path) -> list[Adapter]:
        """Add all adapters that `save_adapters` or PEFT wrote to a folder, each under the name it has there.

        Raises:
            UserError: there are none, or one of them cannot be loaded.
        """
        folder = Path(folder)
        found = {DEFAULT: folder} if (folder / CONFIG_FILE).exists() else {}
        found.update({path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))})
        if not found:
            raise UserError(f"{folder}: expected {CONFIG_FILE}, here or one folder below; found none.")
        return [self._load(open_adapter(path), name) for name, path in found.items()]

    def save_adapter(self, folder: str | Path, name: str | None = None, convert: bool = True) -> None:
        """Write one adapter, by default the active one, to a folder in PEFT's layout.

        Args:
            convert: see `formats.peft.save_adapter`.

        Raises:
            UserError: there is no such adapter; or none was named, and not exactly one is active.
        """
        adapter = self.adapter if name is None else self._named(name)
        if adapter is None:
            raise UserError("no adapter is active; name the one to save.")
        save_adapter(Path(folder), adapter, self.record(Path(folder)) or self.base.name, self.model.config.family,
                     convert, self.promptings.get(adapter.name))

    def record(self, folder: Path) -> BaseRecord | None:
        """The record of this base for an adapter or a run in `folder`; None if its fingerprint is not known."""
        return None if self.fingerprint is None else BaseRecord.of(
            self.base, self.fingerprint, folder, self.checkpoint.precision)

    def save_adapters(self, folder: str | Path, convert: bool = True) -> None:
        """Write all adapters as PEFT does: "default" into the folder itself, others into subfolders by name.

        Raises:
            UserError: a name cannot be that of a folder.
        """
        strange = [name for name in self.adapters if not re.fullmatch(r"[\w-]+", name)]
        if strange:
            raise UserError(f"adapter {', '.join(strange)}: expected a name of letters, digits, - and _, for a folder.")
        for name in self.adapters:
            self.save_adapter(Path(folder) if name == DEFAULT else Path(folder) / name, name, convert)

    def set_adapter(self, names: Names) -> None:
        """Activate this adapter, or these, whose updates are applied in this order.

        Raises:
            UserError: there is no such adapter, or they cannot be active together.
        """
        self.adapters.activate(*([names] if isinstance(names, str) else names))

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            UserError: there is no such adapter.
        """
        self.adapters.delete(name)
        self.promptings.pop(name, None)

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Within the block no adapter is active."""
        with self.adapters.off():
            yield

    def merge(self, tolerance: float = 1e-3) -> float:
        """Merge the active adapters into weights, which the model uses until `unmerge`.

        Returns: the largest change of a logit of a probe text.

        Raises:
            UserError: that exceeds `tolerance`; nothing is merged then.
        """
        difference = self.check_merge(tolerance)
        self.adapters.merge()
        return difference

    def check_merge(self, tolerance: float = 1e-3) -> float:
        """As `merge`, without merging."""
        difference, largest = merge_error(self.model)
        if not difference <= tolerance:
            raise UserError(f"Merging moves a logit by {difference:.2e} (the largest is {largest:.1f}), more than "
                            f"the tolerance of {tolerance:g}; nothing was written. Check the adapter, or raise the "
                            "tolerance.")
        return difference

    def unmerge(self) -> None:
        """Use the base's weights, the same bits as before, and the adapters beside them again."""
        self.adapters.unmerge()

    def _load(self, source: AdapterSource, name: str) -> Adapter:
        record = read_record(source.folder)
        prompting = read_prompting(source.folder, self.tokenizer)
        adapter = load_adapter(source, self.model, name)
        if prompting is not None:
            self.promptings[name] = prompting
        if record and self.fingerprint and record.fingerprint != self.fingerprint:
            say_on_stderr(f"Note: {source.folder} was trained on {record.name}, whose weights are not those of "
                          f"{self.base.name}. Unless one is a conversion of the other, its answers will be wrong.")
        elif record and (record.precision or "auto") != self.checkpoint.precision:
            say_on_stderr(f"Note: {source.folder} was trained with --base-precision {record.precision or 'auto'}, and "
                          f"runs here with {self.checkpoint.precision}: its answers may differ a little.")
        return adapter

    def _named(self, name: str) -> Adapter:
        if name not in self.adapters:
            raise no_such_adapter([name], self.adapters)
        return self.adapters[name]


def load(base: str | WantedBase | ResolvedBase, adapter: str | Path | AdapterSource | None = None,
         precision: str = "fp32", base_precision: str = "auto") -> Session:
    """Load a base, by any name that `resolve_base` accepts, and an adapter.

    A `WantedBase` must have the fingerprint that was recorded for it.

    Args:
        adapter: its folder, or what `open_adapter` returned.
        precision: of matrix products with the base's weights, one of `ops.precision.PRECISIONS`; see `build_model`.
        base_precision: what the base's weights are held in: "auto" or "fp32", see `build_model`; or "bf16", "q8" or
            "q4", see `formats.quantised_base.in_precision`.

    Raises:
        UserError: the base or the adapter cannot be found or read, they do not fit together, or weights are not finite.
    """
    resolved = base if isinstance(base, ResolvedBase) else resolve_base(base)
    checkpoint, tokenizer = load_base(resolved)
    checkpoint = in_precision(checkpoint, resolved, base_precision)
    watched = _Watched(checkpoint)
    checkpoint = replace(checkpoint, tensors=watched)
    if adapter is not None and (isinstance(adapter, AdapterSource) or may_be_adapter(Path(adapter))):
        adapter, before = open_adapter(adapter), checkpoint
        checkpoint, tokenizer = with_added_tokens(checkpoint, tokenizer, adapter)
        for note in checkpoint.notes[len(before.notes) :]:
            say_on_stderr(note)
    model = build_model(checkpoint.config, checkpoint.tensors, precision, base_precision)
    if watched.wrong:
        raise UserError(f"{resolved.path}: weights hold numbers that are not finite:\n  "
                        + "\n  ".join(some_of_each(watched.wrong)) +
                        "\nThe file is damaged: fetch or train the base again.")
    session = Session(model, tokenizer, checkpoint, resolved, checkpoint.original or watched.fingerprint.hexdigest(),
                      base_precision)
    wanted = resolved.wanted
    if wanted and wanted.fingerprint not in (None, session.fingerprint):
        raise UserError(f"{wanted.owner}: its base is called {wanted.name}, and the model found by that name, "
                        f"{resolved.path}, has other weights. Give its base with --base, or --base {resolved.path} if "
                        "this is a conversion of it.")
    if adapter is not None:
        session.load_adapter(adapter)
    return session


class _Watched(Mapping[str, np.ndarray]):
    """Tensors that are checked when they are first read, so that none is read for that alone.

    Attributes:
        wrong: those that are not all finite, and what they hold.
        fingerprint: of those read.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._tensors, self._config = checkpoint.tensors, checkpoint.config
        self._new = set() if checkpoint.original else set(checkpoint.tensors)  # those were checked before
        self.wrong: list[str] = []
        self.fingerprint = Fingerprint()

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._tensors[name]
        if name in self._new:
            self._new.remove(name)
            self.fingerprint.add(name, array)
            if not all_finite(array):
                self.wrong.append(f"{name}: {kinds(array)}")
        return array

    def stored(self, name: str) -> Blocks | None:
        """See `ops.blocks.stored_in`; decoded a part at a time for the check."""
        blocks = stored_in(self._tensors, name)
        if blocks is not None and name in self._new:
            self._new.remove(name)
            self.fingerprint.add_stored(name, blocks, is_conv1d(self._config, name))
            if not all(map(all_finite, blocks.parts())):
                self.wrong.append(f"{name}: {kinds(blocks.decoded())}")
        return blocks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
