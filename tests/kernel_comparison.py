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


def least_of_product(x, weight):
    """For `compare`, of x (n, k) weightᵀ (k, m) in bf16: rounding two numbers to eight bits moves their product by up
    to 2^-8 of it, a fifth of the tolerance, however little is left of the sum of products."""
    x, weight, probe = np.abs(x), np.abs(weight), np.abs(normal(len(x), len(weight), seed=99))
    return {"least": 0.2 * (x @ weight.T).max(),
            "least_gradient": 0.2 * max((probe @ weight).max(), (probe.T @ x).max())}


def least_of_loss(hidden, head, weights, precision):
    """For `compare`, of a cross-entropy: it is a difference of logits, and its gradients are differences of entries,
    each times a weight; `compare` multiplies these gradients by 0.14. In bf16 the probabilities are off, too."""
    heaviest, (of_logits, of_entries) = np.abs(weights).max(), (0.5, 0.3) if precision == "bf16" else (0.15, 0.02)
    return {"least": max(0.1, of_logits * heaviest * np.abs(hidden @ head.T).max()),
            "least_gradient": max(0.1, of_entries * heaviest * max(np.abs(hidden).max(), np.abs(head).max()))}


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
