"""Activation checkpointing: only a block's input is kept, and the backward pass runs the block again."""

from __future__ import annotations

from jittor_lora.system.runtime import jt


def recomputed(block: jt.Module, x, *context):
    """block(x, *context), keeping only x for the backward pass (Chen et al. 2016).

    Args:
        block: must compute the same in both runs, dropout masks included. Its parameters get gradients.
        x: (N, D), the block's input. The other arguments, `context`, get no gradient.
    """
    parameters = [p for p in block.parameters() if not p.is_stop_grad()]
    if x.is_stop_grad() and not parameters:
        return block(x, *context)
    return _Recomputed.apply(x, lambda rows: block(rows, *context), parameters, *parameters)


class _Recomputed(jt.Function):
    def __call__(self, *inputs):
        # Under `th_mode` (see `CausalLM.hidden`) the result of frozen values alone could no longer need a gradient.
        with jt.flag_scope(th_mode=0):
            return super().__call__(*inputs)

    def execute(self, x, run, parameters, *_):
        self.inputs, self.x_wanted = (x, run, parameters), not x.is_stop_grad()
        with jt.no_grad():
            return run(x)

    def grad(self, upstream):
        x, run, parameters = self.inputs
        if self.x_wanted:
            x = x.detach()  # cut off from its history; it needs a gradient itself
        with jt.flag_scope(th_mode=1):
            y = run(x)
        # The upstream gradient is cut off too: it was computed from these parameters.
        targets = [x, *parameters] if self.x_wanted else parameters
        gradients = jt.grad(y * upstream.detach(), targets, False)
        dx, gradients = (gradients[0], gradients[1:]) if self.x_wanted else (None, gradients)
        return (dx, None, None, *gradients)
