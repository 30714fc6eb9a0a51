"""One training step up to its gradient: on this process, or shared by several ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator, Sequence

from jittor_lora.data.groups import TokenGroup
from jittor_lora.data.stream import Stream
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.ranks import ALONE, Ranks
from jittor_lora.system.runtime import jt
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import batch_gradients
from jittor_lora.training.optimizer import gradient_norm
from jittor_lora.training.trainable import Trainable


@dataclass(frozen=True)
class Step:
    """Loss and gradient of one batch.

    Attributes:
        number: of the step, from 0.
        loss: mean per label, in nats.
        gradients: by parameter.
        norm: of the gradient, before clipping.
        weight, tokens, questions: sum of the label weights, rows and examples of the batch.
        streams: those, or the parts of those, that this process computed.
        is_finite: are loss and norm finite, on all ranks?
    """

    number: int
    loss: float
    gradients: dict[str, jt.Var]
    norm: float
    weight: float
    tokens: int
    questions: int
    streams: Sequence[Stream]
    is_finite: bool


class Computation:
    """Computes losses and gradients of batches. Several ranks call each method together and get the same result."""

    def __init__(self, model: CausalLM, trainable: Trainable, config: RunConfig, ranks: Ranks = ALONE):
        self.model, self.ranks = model, ranks
        self.parameters = trainable.parameters()
        self._trainable, self._config = trainable, config
        self._longest = 0  # rows of the longest stream so far

    def step(self, number: int, batch: Sequence[TokenGroup]) -> Step:
        """The step with this number, from 0, on these examples."""
        streams = streams_of(batch, self._config, self.ranks)
        weight, tokens, questions = self.ranks.total(sum(s.total_weight for s in streams),
                                                     sum(len(s.tokens) for s in streams),
                                                     sum(len(s.ids) for s in streams))
        loss, gradients = self.ranks.all_reduce_gradients(*self._gradients(number, streams, weight))
        norm = gradient_norm(gradients)
        self._trainable.set_dropout()  # off again
        is_finite = not self.ranks.any(not (math.isfinite(loss) and math.isfinite(norm)))
        return Step(number, loss, gradients, norm, weight, int(tokens), int(questions), streams, is_finite)

    def again(self, step: Step) -> Iterator[tuple[Stream, float, dict[str, jt.Var]]]:
        """Each of the step's streams on this process, with what it adds to loss and gradient, computed once more.

        Until the next one the model has the stream's dropout masks.
        """
        for stream in step.streams:
            yield stream, *self._gradients(step.number, [stream], step.weight)
        self._trainable.set_dropout()

    def _gradients(self, step: int, streams: Sequence[Stream], weight: float) -> tuple[float, dict[str, jt.Var]]:
        def prepare(stream: Stream) -> None:
            self._make_room(len(stream.tokens))
            if self._config.lora_dropout:
                self._trainable.set_dropout(self._config.seed, step, stream.number)

        return batch_gradients(self.model, streams, self.parameters, prepare, self._config.label_smoothing, weight)

    def _make_room(self, rows: int) -> None:
        """Before a stream longer than all before: the memory that shorter ones freed comes in pieces too small for it,
        and Jittor would hold on to them."""
        if rows > self._longest:
            self._longest = rows
            jt.gc()
