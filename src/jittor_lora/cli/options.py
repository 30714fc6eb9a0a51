"""Settings that several verbs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, Optional

from jittor_lora.cli.arguments import find_adapter
from jittor_lora.settings.base import PATH, Settings, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import (
    LARGEST_SEED,
    BasePrecision,
    Precision,
    base_precision_setting,
    precision_setting,
)


class ModelOptions(Settings):
    """A base, with or without an adapter."""

    base: Optional[str] = setting(None, "Model", "base model: a folder, a named base (gpt2, smollm2-135m), a Hub id, "
                                  "or auto; by default the one that the adapter was trained on", holds=PATH,
                                  min_length=1)
    adapter: Optional[str] = setting(None, "Model", "adapter folder of PEFT, mlx-lm or litgpt, a GGUF adapter, or a "
                                     "run folder", holds=PATH, min_length=1)

    def base_and_adapter(self):
        """The base and the adapter for `session.load`: the given base, else the adapter's, else auto; and an
        `AdapterSource`, None without an adapter.

        Raises:
            UserError: the adapter was not found or its settings cannot be read, or its base is not named or not found.
        """
        if self.adapter is None:
            return self.base or "auto", None
        folder = find_adapter(self.adapter, "--adapter ")
        from jittor_lora.formats.adapter_source import open_adapter
        from jittor_lora.formats.base_record import base_of_adapter
        adapter = open_adapter(folder)
        return self.base or base_of_adapter(adapter), adapter


class ThreadOptions(Settings):
    """The number of threads."""

    threads: Optional[int] = setting(None, "Computing", "processor threads; by default one per core", ge=1)

    def set_threads(self) -> None:
        if self.threads:
            from jittor_lora.system.runtime import set_threads
            set_threads(self.threads)


class ComputeOptions(ThreadOptions):
    """Threads and precision."""

    precision: Precision = precision_setting("Computing")
    base_precision: BasePrecision = base_precision_setting("Computing")


class DecodingOptions(Settings):
    """Search for the likeliest text, and constraints on it."""

    beams: int = setting(1, "Decoding", "number of beams in beam search; 1 for greedy decoding or sampling", ge=1)
    length_penalty: float = setting(1.0, "Decoding", "with beams: a text's log-probability is divided by its length to "
                                    "this power; higher values favour longer texts")
    early_stopping: Literal["no", "yes", "never"] = setting(
        "no", "Decoding", "with beams: when the search stops, as in transformers: once open beams are unlikely to be "
        "better (no), with as many finished texts as beams (yes), or once no beam can be better (never)")
    no_repeat_ngram: int = setting(0, "Decoding", "no sequence of N tokens occurs twice; 0 for no limit", ge=0)
    min_new_tokens: int = setting(0, "Decoding", "minimum length in tokens", ge=0)
    repetition_penalty: float = setting(1.0, "Decoding", "above 1, earlier tokens become less likely", gt=0)

    def conflicts(self) -> Iterator[Problem]:
        if self.beams == 1:
            for name, off in (("length_penalty", 1.0), ("early_stopping", "no")):
                if getattr(self, name) != off:
                    yield Problem((name, "beams"), "has no effect without beams; give --beams")

    def decoding(self, max_new_tokens: int, stop: Optional[str]):
        """The settings as a `Decoding`."""
        from jittor_lora.inference.beam_settings import Beams
        from jittor_lora.inference.generator import Decoding
        from jittor_lora.inference.sampling import Sampling
        names = {field.name for field in dataclasses.fields(Sampling)} & set(type(self).model_fields)
        beams = None
        if self.beams > 1:
            stopping = {"no": False, "yes": True}.get(self.early_stopping, self.early_stopping)
            beams = Beams(self.beams, self.length_penalty, stopping)
        return Decoding(max_new_tokens, Sampling(**{name: getattr(self, name) for name in names}), stop, beams)


class SamplingOptions(DecodingOptions):
    """How the next token is sampled."""

    temperature: float = setting(0.0, "Sampling", "0 picks the likeliest token; above 0 samples, the higher the more "
                                 "random", ge=0)
    top_k: int = setting(0, "Sampling", "sample from the N likeliest tokens; 0 for all", ge=0)
    top_p: float = setting(1.0, "Sampling", "sample from the likeliest tokens that together have this probability",
                           gt=0, le=1)
    min_p: float = setting(0.0, "Sampling", "sample only tokens at least this share as likely as the likeliest; 0 for "
                           "all", ge=0, le=1)
    seed: int = setting(42, "Sampling", "seed for sampling", ge=0, le=LARGEST_SEED)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.temperature == 0:
            for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if getattr(self, name) != off:
                    yield Problem((name, "temperature"),
                                  "has no effect while temperature is 0; give a temperature above 0")
        elif self.beams > 1:
            yield Problem(("temperature", "beams"), "beam search does not sample; leave one of the two out")
