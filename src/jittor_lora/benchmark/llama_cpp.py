"""llama.cpp as a contender, through its C interface: one call per step, so that Python costs microseconds per token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from jittor_lora.benchmark import workloads
from jittor_lora.benchmark.worker import Job

CELLS = 256  # the key-value cache is a multiple of this many tokens
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
PIECE = 512  # most rows that are computed at a time, llama.cpp's default


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, data: int) -> None:
    """Errors alone; the rest is a line per tensor."""
    if level == _ERROR:
        sys.stderr.buffer.write(text)


class Contender:
    """
    Args:
        base: a GGUF file.
        precision: of the other contenders' arithmetic; llama.cpp's depends on the file alone.
    """

    def __init__(self, base: str, threads: int, precision: str):
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_log, None)
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(base.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {base}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, spec: dict[str, Any]) -> Job:
        """Greedy continuation of random prompts, all in one batch per step.

        Args:
            spec: batch, prompt, new: number of prompts, tokens per prompt, and new tokens; flash, kv, unified: see
                `_Context`.
        """
        prompts = workloads.step_tokens((spec["batch"], spec["prompt"]), self.vocab_size)[0].tolist()
        context, results = self._context(spec, len(prompts), spec["prompt"] + spec["new"], spec["prompt"]), []

        def run() -> None:
            context.clear()
            results.append(context.continued(prompts, [0] * len(prompts), spec["new"]))

        return Job(run, lambda: {"tokens": results[0]})

    def context(self, spec: dict[str, Any]) -> Job:
        """Questions on a context that is read once.

        Args:
            spec: prefix, questions: token ids; new: tokens per answer; together: advance all questions in one batch,
                rather than one after the other; flash, kv, unified: see `_Context`.
        """
        prefix, questions, together = spec["prefix"], spec["questions"], spec["together"]
        longest = max(map(len, questions))
        context, results = self._context(spec, len(questions) if together else 1, len(prefix) + longest + spec["new"],
                                         max(len(prefix), longest)), []

        def run() -> None:
            context.clear()
            context.read(prefix)
            if together:
                for sequence in range(1, len(questions)):
                    context.copy(sequence)
                results.append(context.continued(questions, [len(prefix)] * len(questions), spec["new"]))
            else:
                answers = []
                for question in questions:
                    context.cut(len(prefix))
                    answers += context.continued([question], [len(prefix)], spec["new"])
                results.append(answers)

        return Job(run, lambda: {"tokens": results[0]})

    def logits(self, spec: dict[str, Any]) -> Job:
        """The logits of all rows of a text, written to a file.

        Args:
            spec: tokens; path: of the .npy file, (T, V) float32; flash, kv, unified: see `_Context`.
        """
        tokens = spec["tokens"]
        context = self._context(spec, 1, len(tokens), len(tokens), len(tokens))

        def run() -> None:
            context.clear()
            np.save(spec["path"], context.step(tokens, range(len(tokens)), [0] * len(tokens), range(len(tokens))))

        return Job(run, lambda: None)

    def _context(self, spec: dict[str, Any], sequences: int, length: int, most_rows: int,
                 scored: int = 1) -> _Context:
        return _Context(self.model, self.vocab_size, self.threads, sequences, length, most_rows, scored,
                        spec.get("flash", True), spec.get("kv", "f16"), spec.get("unified", True))


class _Context:
    """Key-value caches of some sequences, with the batch that is computed next.

    Args:
        length: most tokens per sequence.
        most_rows: most rows per sequence in a step.
        scored: of how many rows per sequence logits are wanted in a step, at most.
        flash: llama.cpp's flash attention.
        kv: type of keys and values, "f16" or "f32".
        unified: one cache for all sequences, in which they share what was copied, rather than one for each.
    """

    def __init__(self, model, vocab_size: int, threads: int, sequences: int, length: int, most_rows: int, scored: int,
                 flash: bool, kv: str, unified: bool):
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = sequences * -(-length // CELLS) * CELLS
        settings.n_batch = sequences * max(most_rows, scored)
        settings.n_ubatch = min(PIECE, settings.n_batch)
        settings.n_seq_max, settings.kv_unified = sequences, unified
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = int(flash)
        settings.type_k = settings.type_v = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}[kv]
        if hasattr(settings, "n_outputs_max"):  # so that no memory is set aside for more
            settings.n_outputs_max, settings.n_outputs_max_per_seq = sequences * scored, scored
        self.handle = llama_cpp.llama_init_from_model(model, settings)
        if not self.handle:
            raise ValueError("llama.cpp cannot make a context with these settings")
        self.memory = llama_cpp.llama_get_memory(self.handle)
        self.vocab_size = vocab_size
        self.batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        self.token, self.pos, self.counts = (np.ctypeslib.as_array(array, (settings.n_batch,)) for array in
                                             (self.batch.token, self.batch.pos, self.batch.n_seq_id))
        self.scored = np.ctypeslib.as_array(self.batch.logits, (settings.n_batch,))
        self.counts[:] = 1

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def copy(self, sequence: int) -> None:
        """Let a sequence begin with all of the first one."""
        llama_cpp.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def cut(self, length: int) -> None:
        """Forget all of the first sequence but its first tokens."""
        llama_cpp.llama_memory_seq_rm(self.memory, 0, length, -1)

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens into the first sequence, without logits."""
        self.step(tokens, range(len(tokens)), [0] * len(tokens), [])

    def step(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int],
             scored: Sequence[int]) -> np.ndarray:
        """Compute rows; returns the logits of those at the indices `scored`, (len(scored), V), valid until the next."""
        count = len(tokens)
        self.batch.n_tokens = count
        self.token[:count], self.pos[:count], self.scored[:count] = tokens, positions, 0
        self.scored[list(scored)] = 1
        for row, sequence in enumerate(sequences):
            self.batch.seq_id[row][0] = sequence
        if llama_cpp.llama_decode(self.handle, self.batch):
            raise ValueError("llama_decode failed")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.handle), (len(scored), self.vocab_size))

    def continued(self, prompts: Sequence[Sequence[int]], starts: Sequence[int], new: int) -> list[list[int]]:
        """The likeliest `new` tokens after each prompt; prompt i continues sequence i at position `starts[i]`."""
        tokens = [token for prompt in prompts for token in prompt]
        positions = [start + at for prompt, start in zip(prompts, starts) for at in range(len(prompt))]
        sequences = [number for number, prompt in enumerate(prompts) for _ in prompt]
        ends = np.cumsum([len(prompt) for prompt in prompts]) - 1
        chosen = [self.step(tokens, positions, sequences, ends).argmax(1)]
        lengths, numbers = np.array(starts) + [len(prompt) for prompt in prompts], range(len(prompts))
        while len(chosen) < new:
            chosen.append(self.step(chosen[-1], lengths, numbers, numbers).argmax(1))
            lengths += 1
        return np.stack(chosen, 1).tolist()
