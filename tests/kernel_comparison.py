"""Comparing kernels with their definitions: values and gradients."""

from __future__ import annotations

import numpy as np

from jittor_lora.ops import portable
from jittor_lora.system.runtime import jt

VALUE, GRADIENT = 1e-5, 1e-4
BF16 = 2e-2


def kernels():
    from jittor_lora.ops import fused
    return fused


def normal(*shape, seed=0, scale=1.0):
    return (np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32)


def close(found, expected, tolerance, least=None):
    """Within `tolerance` of the largest size in `expected`, or of `least` where that is smaller: sums that cancel. The
    default is for numbers of size 1: 1 for products in bf16, else 0.1."""
    assert found.shape == expected.shape
    least = (1.0 if tolerance >= BF16 else 0.1) if least is None else least
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), least)


def least_of_loss(hidden, head, weights):
    """How far a cross-entropy and its gradients may be off if they are small: a loss is a difference of logits, and its
    gradients are differences of entries, each times a weight. `compare` passes on 0.14 of a loss's gradients."""
    heaviest = np.abs(weights).max()
    return {"least": max(0.1, 0.15 * heaviest * np.abs(hidden @ head.T).max()),
            "least_gradient": max(0.1, 0.02 * heaviest * max(np.abs(hidden).max(), np.abs(head).max()))}


def both(name, arrays, arguments=(), differentiate=None, value=VALUE, gradient=GRADIENT, least=None):
    """Compare operation `name` of the kernels with the portable one on these arrays."""
    compare(lambda *v: getattr(kernels(), name)(*v, *arguments), lambda *v: getattr(portable, name)(*v, *arguments),
            arrays, differentiate, value, gradient, least)


def compare(kernel, definition, arrays, differentiate=None, value=VALUE, gradient=GRADIENT, least=None,
            least_gradient=None):
    results = []
    wanted = range(len(arrays)) if differentiate is None else differentiate
    for operation in (kernel, definition):
        variables = [jt.array(a) if i in wanted else jt.array(a).stop_grad() for i, a in enumerate(arrays)]
        y = operation(*variables)
        probe = jt.array(normal(*y.shape, seed=99))
        results.append([y.numpy(), *(g.numpy() for g in jt.grad((y * probe).sum(), [variables[i] for i in wanted]))])
    found, expected = results
    close(found[0], expected[0], value, least)
    for f, e in zip(found[1:], expected[1:]):
        close(f, e, gradient, least if least_gradient is None else least_gradient)
