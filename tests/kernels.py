"""Where the fused kernels have to work. Not whether they do: a kernel that does not compile must fail its tests."""

from __future__ import annotations

import pytest

from jittor_lora import machine, onednn

HAS_KERNELS = onednn.is_served()
HAS_BF16 = HAS_KERNELS and machine.multiplies_bf16(machine.cpu_flags())

needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="there is no oneDNN for this platform")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor multiplies no bf16 numbers")
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16)]
