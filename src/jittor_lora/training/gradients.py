"""The loss of token streams, and its gradient."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np

from jittor_lora import ops
from jittor_lora.data.stream import Stream
from jittor_lora.model.causal_lm import CausalLM, check_range
from jittor_lora.ops import as_var, frozen
from jittor_lora.system.ranks import ALONE, Ranks
from jittor_lora.system.runtime import jt

GRADIENTS_AT_A_TIME = 8  # about the parameters of one layer


def batch_gradients(model: CausalLM, streams: Sequence[Stream], parameters: Mapping[str, jt.Var],
                    prepare: Callable[[Stream], None] | None = None, smoothing: float = 0.0,
                    weight: float | None = None) -> tuple[float, dict[str, jt.Var]]:
    """The mean loss per label over a batch, in nats, and its gradient by parameter, accumulated stream by stream.

    For some of the streams of a batch, perhaps none, it is their share of both.

    Args:
        prepare: called with each stream before it is read.
        smoothing: label smoothing, which the loss includes.
        weight: of all labels of the batch; by default of those in `streams`.
    """
    weight = sum(stream.total_weight for stream in streams) if weight is None else weight
    loss, gradients = 0.0, None
    for stream in streams:
        if prepare is not None:
            prepare(stream)
        with model.products():
            part = ops.loss_per(stream_loss(model, stream, smoothing), weight)
            found = gradients_of(part, list(parameters.values()))
        gradients = found if gradients is None else [ops.add(g, f) for g, f in zip(gradients, found)]
        jt.sync(gradients)
        loss += part.item()
    if gradients is None:
        gradients = [frozen(np.zeros(p.shape)) for p in parameters.values()]
    return loss, dict(zip(parameters, gradients))


def stream_loss(model: CausalLM, stream: Stream, smoothing: float = 0.0):
    """The weighted sum of the losses of a stream's labels, (1,) float32, in nats.

    Args:
        smoothing: label smoothing, see `ops.portable.token_cross_entropy`.

    Raises:
        UserError: a token, label or position that the model does not have.
    """
    check_range("label", stream.labels, model.config.vocab_size)  # end of text may be a label without being an input
    hidden = model.hidden(stream.tokens, stream.positions, stream.layout, stream.label_rows,
                          rows_before=stream.rows_before, label_rows_before=stream.label_rows_before)
    if len(stream.labels) > len(stream.label_rows):
        hidden = ops.rows(hidden, as_var(stream.label_index))  # (K, D) → (M, D)
    return model.loss(hidden, stream.labels, stream.label_weights, smoothing, stream.label_rows[stream.label_index])


def gradients_of(loss, parameters: Sequence[jt.Var]) -> list[jt.Var]:
    """The gradient of `loss` for each parameter, computed from the last parameter to the first.

    That is the order of the backward pass, so activations are freed layer by layer. Asked for all gradients at once,
    Jittor computes the parameters' last and holds everything until then.
    """
    loss.sync()
    gradients = [gradient.stop_grad() for gradient in jt.grad(loss, list(parameters))]
    loss.stop_grad()
    for end in range(len(gradients), 0, -GRADIENTS_AT_A_TIME):
        jt.sync(gradients[max(0, end - GRADIENTS_AT_A_TIME) : end])
    return gradients


def mean_loss(model: CausalLM, streams: Sequence[Stream], ranks: Ranks = ALONE) -> float:
    """The weighted mean loss per label over these streams, in nats; each rank reads some of them."""
    total = 0.0
    with jt.no_grad(), model.products():
        for stream in ranks.share(streams):
            total += stream_loss(model, stream).item()
    return ranks.total(total)[0] / sum(stream.total_weight for stream in streams)
