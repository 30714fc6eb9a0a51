"""Records of a small network in numpy, computed in float32 here and in float64 there, with errors planted there."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from jittor_lora.alignment import record as names
from jittor_lora.alignment.read_record import STEP_COLUMNS
from jittor_lora.alignment.record import Facts, Record, StepRecord
from jittor_lora.files.atomic import atomic_write
from jittor_lora.formats.safetensors_file import write_safetensors

WIDTH, INNER, ROWS, VOCABULARY, LAYERS, RANK, RATE, EPSILON = 24, 96, 7, 61, 3, 4, 1e-3, 1e-8
TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def weights() -> dict[str, np.ndarray]:
    """By the names of GPT-2's checkpoints."""
    draw = np.random.default_rng(0)
    made = {"wte.weight": draw.normal(size=(VOCABULARY, WIDTH)) * 0.5,
            "wpe.weight": draw.normal(size=(32, WIDTH)) * 0.3}
    shapes = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH), "mlp.c_fc": (WIDTH, INNER),
              "mlp.c_proj": (INNER, WIDTH)}
    for layer in range(LAYERS):
        for norm in ("ln_1", "ln_2"):
            made[f"h.{layer}.{norm}.weight"] = 1 + draw.normal(size=WIDTH) * 0.2
            made[f"h.{layer}.{norm}.bias"] = draw.normal(size=WIDTH) * 0.2
        for module, shape in shapes.items():
            made[f"h.{layer}.{module}.weight"] = draw.normal(size=shape) * 0.2
            made[f"h.{layer}.{module}.bias"] = draw.normal(size=shape[1]) * 0.2
    made["ln_f.weight"], made["ln_f.bias"] = np.ones(WIDTH), np.zeros(WIDTH)
    return {name: array.astype(np.float32) for name, array in made.items()}


def _erf(x):
    return np.vectorize(math.erf)(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1 + _erf(x / np.sqrt(2)))


def forward(tensors, dtype, *, gelu=gelu_tanh, eps=1e-5, scale=1.0, positions_from=0, tokens_from=3, dropped="",
            residual=1.0) -> dict[str, np.ndarray]:
    """Inputs and outputs of all modules, and logits, in float32."""
    tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    if dropped:
        tensors[dropped] = np.zeros_like(tensors[dropped])
    seen = {}

    def through(module, x, compute):
        seen[f"input.{module}"] = x.astype(np.float32)
        y = compute(x)
        seen[f"output.{module}"] = y.astype(np.float32)
        return y

    def linear(module, x):
        return through(module, x, lambda x: x @ tensors[f"{module}.weight"] + tensors[f"{module}.bias"])

    def layer_norm(module, x):
        return through(module, x, lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + dtype(eps)) * tensors[f"{module}.weight"] + tensors[f"{module}.bias"])

    ids = np.arange(ROWS, dtype=dtype)[:, None]
    x = through("wte", ids + tokens_from, lambda i: tensors["wte.weight"][i[:, 0].astype(int)])
    x = x + through("wpe", ids + positions_from, lambda i: tensors["wpe.weight"][i[:, 0].astype(int)])
    for layer in range(LAYERS):
        at = f"h.{layer}"
        q, k, v = np.split(linear(f"{at}.attn.c_attn", layer_norm(f"{at}.ln_1", x)), 3, -1)
        scores = q @ k.T * dtype(scale / math.sqrt(WIDTH)) + np.triu(np.full((ROWS, ROWS), -1e9, dtype), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        x = x + dtype(residual) * linear(f"{at}.attn.c_proj", shares / shares.sum(-1, keepdims=True) @ v)
        x = x + linear(f"{at}.mlp.c_proj", gelu(linear(f"{at}.mlp.c_fc", layer_norm(f"{at}.ln_2", x))).astype(dtype))
    seen["logits"] = (layer_norm("ln_f", x) @ tensors["wte.weight"].T).astype(np.float32)[3:]
    return seen


def cross_entropy(logits) -> float:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(-1)) - shifted[:, 7]))


def adapter(seed: int, b: float = 0.0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    made = {}
    for name, array in weights().items():
        module = name[: -len(".weight")]
        if module.endswith(TARGETS):
            made[f"{module}.lora_A"] = draw.normal(size=(RANK, array.shape[0])).astype(np.float32)
            made[f"{module}.lora_B"] = (draw.normal(size=(array.shape[1], RANK)) * b).astype(np.float32)
    return made


def adam(theta, g, *, rate=RATE, epsilon=EPSILON, decay=0.0, corrected=True):
    """The first update of AdamW, in float32."""
    first, second = (g, g * g) if corrected else (0.1 * g, 0.001 * g * g)
    step = first / (np.sqrt(second) + np.float32(epsilon))
    return theta - np.float32(rate) * step - np.float32(rate * decay) * theta


def gradients() -> dict[str, np.ndarray]:
    """Zero for A, as B is; some as small as ε."""
    draw = np.random.default_rng(3)
    return {name: (draw.normal(size=array.shape) * 10.0 ** draw.uniform(-8, -3, array.shape)
                   * name.endswith("B")).astype(np.float32) for name, array in adapter(1).items()}


def rounded(arrays, size=1e-7, seed=9):
    """The arrays with relative noise of this size."""
    draw = np.random.default_rng(seed)
    return {name: (a * (1 + size * draw.normal(size=a.shape))).astype(np.float32) for name, a in arrays.items()}


def steps(count: int = 60, noise: float = 0.0) -> tuple[StepRecord, ...]:
    """Losses that fall; the noise grows from this to ten times as much."""
    draw = np.random.default_rng(5)
    other = np.random.default_rng(6)
    made = []
    for step in range(1, count + 1):
        loss, norm = 2 + 3 * math.exp(-step / 20) + 0.3 * draw.normal(), 1.5 + 0.4 * abs(draw.normal())
        grow = 1 + noise * 10 ** (step / count) * (other.normal() if step > 1 else 0)
        rate = RATE * min(step / 5, 1) * (1 - step / (2 * count))
        made.append(StepRecord(step, loss * grow, norm * grow, rate, 40 + step % 7, 300 + step % 11, 0.11))
    return tuple(made)


FACTS = Facts("jittor-lora", {"jittor-lora": "0.1.0", "jittor": "1.3.11.0", "numpy": "1.26.4"},
              {"processor": "AMD EPYC", "cores": "2", "memory": "8 GiB", "platform": "Linux"},
              {"threads": 2, "precision": "float32", "device": "cpu"}, 6.6, 700 << 20)


def make_record(there: bool = False, **planted) -> Record:
    """One side; `there` computes in float64, so that it differs by rounding."""
    tensors, dtype = weights(), np.float64 if there else np.float32
    first = forward(tensors, dtype, **planted)
    loss = cross_entropy(first["logits"])
    start, g = adapter(1), gradients()
    if there:
        g = rounded(g)
    final = adapter(2, b=0.05)
    answers = {f"q{i}": f"answer {i}" for i in range(8)}
    held_out = tuple(np.random.default_rng(i).normal(size=(5, VOCABULARY)).astype(np.float32) - 90 for i in range(3))
    facts, series = FACTS, steps(noise=2e-7 if there else 0.0)
    if there:
        final, held_out = rounded(final, 1e-4), tuple(h * np.float32(1 + 1e-6) for h in held_out)
        facts = dataclasses.replace(FACTS, framework="PyTorch", versions={"torch": "2.13.0", "peft": "0.20.0"},
                                    training_seconds=9.9, peak_bytes=1400 << 20)
    base = {name: (a.shape, float(a.astype(np.float64).sum()), float(np.linalg.norm(a.astype(np.float64))))
            for name, a in tensors.items()}
    first.update({f"gradient.{name}": a for name, a in g.items()})
    first.update({f"updated.{name}": adam(start[name], a) for name, a in g.items()})
    scaling = dict.fromkeys((name[:-7] for name in start if name.endswith("lora_A")), 2.0)
    return Record(facts, base, series, first, loss, start, scaling, final, dict(scaling), held_out, answers)


def replaced(record: Record, field: str, **arrays) -> Record:
    """The record with some entries of a mapping replaced, or removed if None; "." is written "__"."""
    changed = {**getattr(record, field), **{name.replace("__", "."): value for name, value in arrays.items()}}
    return dataclasses.replace(record, **{field: {name: value for name, value in changed.items() if value is not None}})


def write_record(folder: Path, record: Record) -> Path:
    """The files of one side."""
    folder.mkdir(parents=True)
    facts = dataclasses.asdict(record.facts)
    (folder / names.FACTS).write_text(json.dumps(facts))
    (folder / names.BASE).write_text(json.dumps({name: {"shape": list(shape), "sum": total, "norm": norm}
                                                 for name, (shape, total, norm) in record.base.items()}))
    lines = [",".join(STEP_COLUMNS), *(",".join(map(repr, dataclasses.astuple(step))) for step in record.steps)]
    (folder / names.STEPS).write_text("\n".join(lines) + "\n")
    (folder / names.ANSWERS).write_text(json.dumps(dict(record.answers)))
    write_arrays(folder / names.FIRST_STEP, {**record.first_step, "loss": np.array([record.loss_of_first_example])})
    write_arrays(folder / names.HELD_OUT, {str(number): array for number, array in enumerate(record.held_out)})
    for name, arrays, scaling in ((names.INITIAL_ADAPTER, record.initial_adapter, record.initial_scaling),
                                  (names.ADAPTER, record.adapter, record.scaling)):
        (folder / name).mkdir()
        write_arrays(folder / name / "adapter_model.safetensors",
                     {f"base_model.model.{key}.weight": array for key, array in arrays.items()})
        (folder / name / "adapter_config.json").write_text(json.dumps({
            "peft_type": "LORA", "r": RANK, "lora_alpha": RANK * next(iter(scaling.values())),
            "target_modules": list(TARGETS)}))
    return folder


def write_arrays(path: Path, arrays) -> None:
    with atomic_write(path, "wb") as stream:
        write_safetensors(stream, arrays, {name: array.shape for name, array in arrays.items()}, {}, path)
