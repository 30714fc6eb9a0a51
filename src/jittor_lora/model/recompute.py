"""Activation checkpointing: a block of which only the input is kept; the backward pass runs it again."""

from __future__ import annotations

from jittor_lora.system.runtime import jt


def recomputed(block: jt.Module, x, *context):
    """block(x, *context), with only x kept for the gradient (Chen et al. 2016).

    Args:
        block: what it draws at random must be the same in both runs. Its parameters get their gradients.
        x: (N, D), the block's input. What else it takes, `context`, gets no gradient.
    """
    parameters = [p for p in block.parameters() if not p.is_stop_grad()]
    if x.is_stop_grad() and not parameters:
        return block(x, *context)
    return _Recomputed.apply(x, lambda rows: block(rows, *context), parameters, *parameters)


class _Recomputed(jt.Function):
    def __call__(self, *inputs):
        # Under `th_mode` (see `CausalLM.hidden`) what is made of frozen values alone can need no gradient any more.
        with jt.flag_scope(th_mode=0):
            return super().__call__(*inputs)

    def execute(self, x, run, parameters, *_):
        self.inputs, self.x_wanted = (x, run, parameters), not x.is_stop_grad()
        with jt.no_grad():
            return run(x)

    def grad(self, upstream):
        x, run, parameters = self.inputs
        if self.x_wanted:
            x = x.detach()  # cut off from what it was made of; it needs a gradient itself
        with jt.flag_scope(th_mode=1):
            y = run(x)
        # The upstream gradient is cut off too: it was made of the very parameters.
        targets = [x, *parameters] if self.x_wanted else parameters
        gradients = jt.grad(y * upstream.detach(), targets, False)
        dx, gradients = (gradients[0], gradients[1:]) if self.x_wanted else (None, gradients)
        return (dx, None, None, *gradients)
