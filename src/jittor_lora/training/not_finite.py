"""A training step whose loss or gradient is not finite: where its numbers went wrong, and what can be done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np

from jittor_lora.data.stream import Stream
from jittor_lora.errors import UserError
from jittor_lora.files.finite import all_finite, not_finite
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.optimizer import gradient_norm
from jittor_lora.training.step import Computation, Step

MOST_IN_A_ROW = 10  # steps that are not finite; the last of them stops the run
SHOWN = 20  # questions in a message


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step.

    Attributes:
        step: counted from 1.
        loss, norm: of the whole step, and of its gradient before clipping.
        gradient: of the whole step: trained arrays, in the network's order → what is wrong.
        arrays: number of trained arrays.
        too_large: the trained array with the largest gradient, where all are finite but their squares are not.
        parameters: trained arrays that were not finite before the step → what is wrong.
        questions: ids of the batch.
        streams: for each stream that is not finite by itself: what is not, its questions, and its rank if there are
            several.
        precision: of matrix products.
    """

    step: int
    loss: float
    norm: float
    gradient: Mapping[str, str]
    arrays: int
    too_large: str | None
    parameters: Mapping[str, str]
    questions: Sequence[str]
    streams: Sequence[str]
    precision: str

    def stops(self, config: RunConfig, left_out: int) -> bool:
        """Must the run stop, after `left_out` steps in a row were left out?"""
        return config.on_non_finite == "stop" or bool(self.parameters) or left_out + 1 == MOST_IN_A_ROW

    def line(self) -> str:
        """For the log."""
        return f"step {self.step} left out: {self._numbers()}; {self._layer()}; {'; '.join(self._batch())}"

    def error(self, config: RunConfig, left_out: int) -> UserError:
        """Why training stops, after `left_out` steps in a row were left out."""
        lines = [f"step {self.step}: {self._numbers()}.", self._layer(), *self._batch(), self._trained()]
        return UserError("\n  ".join(lines) + "\nNothing of this step was kept; the checkpoints are unchanged. "
                         + self._advice(config, left_out))

    def _numbers(self) -> str:
        return f"the loss is {self.loss:.4g} and the gradient norm {self.norm:.4g}"

    def _layer(self) -> str:
        if self.too_large:
            return f"gradient: finite but too large; the largest value is in that of {self.too_large}"
        if not self.gradient:
            return "gradient: finite"
        first, *_, last = [*self.gradient, *self.gradient]
        return (f"gradient: not finite in {len(self.gradient)} of {self.arrays} trained arrays; in the network's order "
                f"the first is {first} ({self.gradient[first]}), the last {last}")

    def _batch(self) -> list[str]:
        finite = "finite, so either their sum is not, or this machine's memory is faulty"
        return [f"questions in the batch: {_some(self.questions)}",
                f"computed again, stream by stream: {'; '.join(self.streams) or finite}"]

    def _trained(self) -> str:
        wrong = [f"{name} ({what})" for name, what in self.parameters.items()]
        return f"trained parameters: {f'not finite in {_some(wrong)}' if wrong else 'finite'}"

    def _advice(self, config: RunConfig, left_out: int) -> str:
        changes = [f"a lower learning_rate (now {config.learning_rate:g})"]
        if not config.max_grad_norm:
            changes.append("gradient clipping (max_grad_norm, now 0, which is off)")
        if self.precision != "fp32":
            changes.append(f"precision fp32 (now {self.precision})")
        again = f"start a new run with {', or '.join(changes)}."
        if self.parameters:
            return f"An update before this step went too far: {again}"
        if left_out + 1 == MOST_IN_A_ROW:
            return f"{MOST_IN_A_ROW} steps in a row were like this one, and no more are left out: {again}"
        return ("To continue without this step, give the same command with --resume --on-non-finite skip. "
                f"If training as a whole has gone wrong, {again}")


def examine(step: Step, compute: Computation) -> Finding:
    """Find where the numbers of a step went wrong, from gradients and parameters and by computing it once more.

    Several ranks call it together and get the same.
    """
    arrays = _arrays(step.gradients)
    gradient, too_large = not_finite(arrays), None
    if not gradient and not math.isfinite(step.norm):
        too_large = max(arrays, key=lambda name: float(np.abs(arrays[name]).max()))
    ranks = compute.ranks
    place = f" on rank {ranks.rank}" if ranks.size > 1 else ""
    own = [[stream.ids, _by_itself(compute.model, stream, loss, found)] for stream, loss, found in compute.again(step)]
    trained = {f"{name}{place}": what for name, what in not_finite(_arrays(compute.parameters)).items()}
    every = ranks.all_gather([own, trained, place])
    return Finding(
        step.number + 1, step.loss, step.norm, gradient, len(arrays), too_large,
        {name: what for _, trained, _ in every for name, what in trained.items()},
        [question for streams, _, _ in every for ids, _ in streams for question in ids],
        [f"{what}{place} for {_some(ids)}" for streams, _, place in every for ids, what in streams if what],
        compute.model.precision)


def _by_itself(model: CausalLM, stream: Stream, loss: float, gradients: Mapping[str, jt.Var]) -> str:
    gradient, norm = not_finite(_arrays(gradients)), gradient_norm(gradients)
    return ", ".join([*([f"loss {loss:.4g}, first wrong in {first_wrong(model, stream)}"]
                        if not math.isfinite(loss) else []),
                      *([f"gradient not finite in {len(gradient)} arrays"] if gradient else
                        [f"gradient norm {norm:.4g}"] if not math.isfinite(norm) else [])])


def first_wrong(model: CausalLM, stream: Stream) -> str:
    """The first part of the network, in the forward pass, whose output is not finite for this stream."""
    before: list[bool] = []  # for each block: is its input finite?
    model.watch = lambda x: before.append(all_finite(x.numpy()))
    try:
        with jt.no_grad(), model.products():
            hidden = model.hidden(stream.tokens, stream.positions, stream.layout, stream.label_rows,
                                  rows_before=stream.rows_before, label_rows_before=stream.label_rows_before)
            end = all_finite(hidden.numpy())
    finally:
        model.watch = None
    last = len(before) - 1
    if all(before):
        return "the output head or the loss" if end else f"block {last} (of 0 to {last}) or the last norm"
    block = before.index(False) - 1
    return "the embeddings" if block < 0 else f"block {block} (of 0 to {last})"


def _arrays(arrays: Mapping[str, jt.Var]) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
