"""The operations of `portable` as fused kernels on the CPU: the same arguments, the same values and gradients.

Each is a `jt.code` operator whose body calls the compiled library, so that Jittor schedules it like its own. Weights
are frozen here: an operation on weights that take a gradient is the portable one's.
"""

from __future__ import annotations

from jittor_lora.ops import portable
from jittor_lora.ops.cpu.interface import CONSTANTS, HEADER
from jittor_lora.ops.cpu.library import library
from jittor_lora.ops.matrix import Matrix
from jittor_lora.ops.plan import AttentionPlan
from jittor_lora.runtime import jt

RANKS_AT_A_TIME = CONSTANTS["RANKS_AT_A_TIME"]


def _kernel(shapes, inputs, call: str, **numbers):
    """The outputs (float32) of one call into the library; `numbers` are read as data["name"] in it."""
    library()
    single = not isinstance(shapes, list)
    made = jt.code([shapes] if single else shapes, ["float32"] * (1 if single else len(shapes)), inputs,
                   cpu_header=HEADER + "#include <string.h>\n", cpu_src=call,
                   data={name: float(value) for name, value in numbers.items()})
    return made[0] if single else made


def _takes_gradient(*variables) -> bool:
    return any(v is not None and not v.is_stop_grad() for v in variables)


def layer_norm(x, weight, bias, eps: float):
    if _takes_gradient(weight, bias):
        return portable.layer_norm(x, weight, bias, eps)
    return _LayerNorm.apply(x, weight, bias, eps)


class _LayerNorm(jt.Function):
    def execute(self, x, weight, bias, eps):
        self.inputs = x, weight, eps
        return _kernel(x.shape, [x, weight, bias],
                       'jl_layer_norm_forward(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, data["eps"]);',
                       eps=eps)

    def grad(self, upstream):
        x, weight, eps = self.inputs
        return _kernel(x.shape, [x, weight, upstream],
                       'jl_layer_norm_backward(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, data["eps"]);',
                       eps=eps), None, None, None


def rms_norm(x, weight, eps: float):
    if _takes_gradient(weight):
        return portable.rms_norm(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(jt.Function):
    def execute(self, x, weight, eps):
        self.inputs = x, weight, eps
        return _kernel(x.shape, [x, weight],
                       'jl_rms_norm_forward(in0_p, in1_p, out0_p, in0_shape0, in0_shape1, data["eps"]);', eps=eps)

    def grad(self, upstream):
        x, weight, eps = self.inputs
        return _kernel(x.shape, [x, weight, upstream],
                       'jl_rms_norm_backward(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, data["eps"]);',
                       eps=eps), None, None


def gelu_tanh(x):
    return _GeluTanh.apply(x)


class _GeluTanh(jt.Function):
    def execute(self, x):
        self.x = x
        return _kernel(x.shape, [x], "jl_gelu_forward(in0_p, out0_p, in0->num);")

    def grad(self, upstream):
        return _kernel(self.x.shape, [self.x, upstream], "jl_gelu_backward(in0_p, in1_p, out0_p, in0->num);")


def swiglu(gate, up):
    return _SwiGLU.apply(gate, up)


class _SwiGLU(jt.Function):
    def execute(self, gate, up):
        self.inputs = gate, up
        return _kernel(gate.shape, [gate, up], "jl_swiglu_forward(in0_p, in1_p, out0_p, in0->num);")

    def grad(self, upstream):
        gate, up = self.inputs
        return tuple(_kernel([gate.shape, up.shape], [gate, up, upstream],
                             "jl_swiglu_backward(in0_p, in1_p, in2_p, out0_p, out1_p, in0->num);"))


def rotary(x, cos, sin):
    return _Rotary.apply(x, cos, sin)


class _Rotary(jt.Function):
    def execute(self, x, cos, sin):
        self.angles = cos, sin
        return self._turned(x, 1)

    def grad(self, upstream):
        return self._turned(upstream, -1), None, None

    def _turned(self, x, sign):
        return _kernel(x.shape, [x, *self.angles], "jl_rotary(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, "
                       'in0_shape2, data["sign"]);', sign=sign)


def linear(x, weight: Matrix, bias=None):
    return lora_linear(x, weight, bias, None, None, 0.0)


def lora_linear(x, weight: Matrix, bias, lora_a, lora_b, scaling: float, dropout: float = 0.0,
                dropout_seed: int | None = None, dropout_row: int = 0):
    keys = 0, 0
    if dropout_seed is None or dropout <= 0.0:
        dropout = 0.0
    else:
        keys = portable.dropout_keys(dropout_seed)
    apart = bias if _takes_gradient(bias) else None
    settings = scaling, dropout, *keys, dropout_row
    y = _LoraLinear.apply(x, weight, None if apart is not None else bias, lora_a, lora_b, settings)
    return y if apart is None else y + apart


class _LoraLinear(jt.Function):
    """Keeps x and its projection onto A for the gradient; a dropout mask is drawn again."""

    def execute(self, x, weight, bias, lora_a, lora_b, settings):
        rows, out, rank = x.shape[0], weight.shape[0], 0 if lora_a is None else lora_a.shape[0]
        numbers = dict(zip(("scaling", "p", "first", "second", "row"), settings), out=out, rank=rank,
                       narrow=weight.precision == "bf16", biased=bias is not None)
        w = weight.packed(True) if weight.precision == "bf16" else weight.var
        nothing = _nothing()
        pair = [nothing, nothing] if lora_a is None else [lora_a, lora_b]
        width = -(-rank // RANKS_AT_A_TIME) * RANKS_AT_A_TIME
        y, projected = _kernel([(rows, out), (rows, width) if width else (1,)],
                               [x, w, nothing if bias is None else bias, *pair],
                               'jl_linear_forward(in0_p, (const void*)in1_p, data["narrow"], '
                               'data["biased"] ? in2_p : 0, in3_p, in4_p, data["rank"], data["scaling"], data["p"], '
                               'data["first"], data["second"], data["row"], '
                               'out0_p, out1_p, in0_shape0, in0_shape1, data["out"]);', **numbers)
        wanted = not x.is_stop_grad()
        if wanted and weight.precision == "bf16":
            # Packed now: in the middle of a backward pass it would make Jittor compute, and keep, all of it so far.
            weight.packed(False)
        self.saved = x, weight, pair, projected, numbers, wanted
        return y

    def grad(self, upstream):
        x, weight, pair, projected, numbers, wanted = self.saved
        w = _nothing()
        if wanted:
            w = weight.packed(False) if weight.precision == "bf16" else weight.var
        dx, da, db = _kernel([x.shape if wanted else (1,), pair[0].shape, pair[1].shape],
                             [x, projected, upstream, w, *pair],
                             'jl_linear_backward(in0_p, in1_p, in2_p, (const void*)in3_p, data["narrow"], in4_p, '
                             'in5_p, data["rank"], data["scaling"], data["p"], data["first"], data["second"], '
                             'data["row"], data["wanted"] ? out0_p : 0, out1_p, out2_p, in0_shape0, '
                             'in0_shape1, data["out"]);',
                             wanted=wanted, **numbers)
        adapted = numbers["rank"] > 0
        return dx if wanted else None, None, None, da if adapted else None, db if adapted else None, None


def _nothing():
    """A placeholder for an input that a kernel does not read."""
    return jt.zeros((1,)).stop_grad()


def attention(q, k, v, plan: AttentionPlan):
    return _Attention.apply(q, k, v, plan)


class _Attention(jt.Function):
    """Keeps its inputs, its output and a number a row and head; weights are computed again."""

    def execute(self, q, k, v, plan):
        rows, heads, d = q.shape
        numbers = {"heads": heads, "kv_heads": k.shape[1], "d": d, "narrow": plan.precision == "bf16"}
        out, lse = _kernel([(rows, heads * d), (rows, heads)], [q, k, v, plan.segments],
                           'int h = data["heads"], g = data["kv_heads"], d = data["d"]; '
                           'jl_attention_forward(in0_p, h * d, in1_p, in2_p, g * d, 0, in3_p, in3_shape0, out0_p, '
                           'out1_p, h, g, d, data["narrow"]);', **numbers)
        self.saved = q, k, v, plan, out, lse, numbers
        return out

    def grad(self, upstream):
        q, k, v, plan, out, lse, numbers = self.saved
        plan.check_keys(k.shape[0])
        return (*_kernel([q.shape, k.shape, v.shape],
                         [q, k, v, plan.segments, plan.groups, out, lse, upstream],
                         'int h = data["heads"], g = data["kv_heads"], d = data["d"]; '
                         'jl_attention_backward(in0_p, h * d, in1_p, in2_p, g * d, 0, in3_p, in4_p, in4_shape0, in5_p, '
                         'in6_p, in7_p, out0_p, out1_p, out2_p, in1_shape0, h, g, d, data["narrow"]);', **numbers),
                None)


def fused_attention(qkv, heads: int, plan: AttentionPlan, rows=None):
    return _FusedAttention.apply(qkv, heads, plan, rows)


class _FusedAttention(jt.Function):
    def execute(self, qkv, heads, plan, rows):
        width = qkv.shape[1] // 3
        numbers = {"heads": heads, "chosen": rows is not None, "narrow": plan.precision == "bf16"}
        count = qkv.shape[0] if rows is None else rows.shape[0]
        self.rows = plan.segments if rows is None else rows
        out, lse = _kernel([(count, width), (count, heads)], [qkv, plan.segments, self.rows],
                           'int h = data["heads"], w = in0_shape1 / 3; '
                           'jl_attention_forward(in0_p, 3 * w, in0_p + w, in0_p + 2 * w, 3 * w, '
                           'data["chosen"] ? in2_p : 0, in1_p, in1_shape0, out0_p, out1_p, h, h, w / h, '
                           'data["narrow"]);', **numbers)
        self.saved = qkv, plan, out, lse, numbers
        return out

    def grad(self, upstream):
        qkv, plan, out, lse, numbers = self.saved
        plan.check_keys(qkv.shape[0])
        return _kernel(qkv.shape, [qkv, plan.segments, plan.groups, self.rows, out, lse, upstream],
                       'int h = data["heads"], w = in0_shape1 / 3; bool chosen = data["chosen"]; '
                       'if (chosen) memset(out0_p, 0, out0->size); '
                       'jl_attention_backward(in0_p, 3 * w, in0_p + w, in0_p + 2 * w, 3 * w, chosen ? in3_p : 0, '
                       'in1_p, in2_p, in2_shape0, in4_p, in5_p, in6_p, out0_p, out0_p + w, out0_p + 2 * w, in0_shape0, '
                       'h, h, w / h, data["narrow"]);', **numbers), None, None, None


def token_cross_entropy(hidden, head: Matrix, labels, weights, smoothing: float = 0.0):
    return _TokenCrossEntropy.apply(hidden, head, labels, weights, smoothing)


class _TokenCrossEntropy(jt.Function):
    def execute(self, hidden, head, labels, weights, smoothing):
        wanted, narrow, nothing = not hidden.is_stop_grad(), head.precision == "bf16", _nothing()
        if narrow:
            forms = [nothing, head.packed_head(False), head.packed_head(True) if wanted else nothing]
        else:
            forms = [head.var, nothing, nothing]
        loss, gradient = _kernel([(1,), hidden.shape if wanted else (1,)], [hidden, *forms, labels, weights],
                                 'bool narrow = data["narrow"]; '
                                 'jl_cross_entropy(in0_p, in1_p, narrow ? (const char*)in2_p : 0, '
                                 'narrow ? (const char*)in3_p : 0, in4_p, in5_p, data["smoothing"], out0_p, '
                                 'data["wanted"] ? out1_p : 0, in0_shape0, in0_shape1, data["size"]);',
                                 wanted=wanted, narrow=narrow, size=head.shape[0], smoothing=smoothing)
        self.gradient = gradient
        return loss

    def grad(self, upstream):
        return self.gradient * upstream, None, None, None, None
