"""mlx-lm as a contender, on mlx's build for the processor."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from jittor_lora.benchmark import workloads
from jittor_lora.benchmark.worker import Job
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.lora.config import DEFAULT_TARGETS

FLOATS = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
BITS = {"q8": 8, "q4": 4}


class Contender:
    """
    Args:
        base: a Hugging Face folder.
        threads, precision: not used: mlx chooses its threads, and computes in the type of the weights.
        storage: of the weights, one of `FLOATS` and `BITS`; quantised in mlx's groups of 64, with float32 beside.
    """

    def __init__(self, base: str, threads: int, precision: str, storage: str):
        self.checkpoint, _ = workloads.open_base(Path(base))
        config = self.checkpoint.config
        defaults = {"n_ctx": config.max_positions,  # what config.json may leave out
                    "layer_norm_epsilon": config.norm_eps, "rms_norm_eps": config.norm_eps}
        self.model, _ = load_model(Path(base), model_config={**defaults, **read_json(Path(base, "config.json"))},
                                   get_model_classes=_classes)
        self.model.set_dtype(FLOATS.get(storage, mx.float32))
        if storage in BITS:
            nn.quantize(self.model, group_size=64, bits=BITS[storage])
        mx.eval(self.model.parameters())

    def decode(self, spec: dict[str, Any]) -> Job:
        """Greedy continuation of random prompts, as in mlx-lm's `generate_step`.

        Args:
            spec: batch, prompt, new: number of prompts, tokens per prompt, and new tokens.
        """
        prompts = workloads.step_tokens((spec["batch"], spec["prompt"]), self.checkpoint.config.vocab_size)[0]
        tokens, results = mx.array(prompts), []

        def run() -> None:
            cache = make_prompt_cache(self.model)
            if tokens.shape[1] > 1:
                self.model(tokens[:, :-1], cache=cache)
                mx.eval([layer.state for layer in cache])  # not the logits, which nobody asked for
            new = [tokens[:, -1:]]
            for _ in range(spec["new"]):
                new.append(mx.argmax(self.model(new[-1], cache=cache)[:, -1:], axis=-1))
                mx.async_eval(new[-1])
            results.append(mx.concatenate(new[1:], axis=1).tolist())

        return Job(run, lambda: {"tokens": results[0]})

    def logits(self, spec: dict[str, Any]) -> Job:
        """The logits of all rows of a text, written to a file.

        Args:
            spec: tokens; path: of the .npy file, (T, V) float32.
        """
        def run() -> None:
            found = self.model(mx.array([spec["tokens"]])).astype(mx.float32)
            np.save(spec["path"], np.array(found[0]))

        return Job(run, lambda: None)

    def step(self, spec: dict[str, Any]) -> Job:
        """A training step on random tokens; arguments as in ours.py."""
        tokens, labels = workloads.step_tokens(spec["shape"], self.checkpoint.config.vocab_size)
        labels = workloads.scored(labels, spec["rows"])
        training, results = _Training(self.model, self.checkpoint.config.family), []
        return Job(lambda: results.append(training.step(tokens, labels)),
                   lambda: {"loss": results[0][0], "gradient norm": results[0][1]})


def _classes(config: dict[str, Any]) -> tuple[type, type]:
    """mlx-lm's classes of a model. Its GPT-2 knows the checkpoint's names without their first part."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")

    class Model(module.Model):
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = {name.removeprefix("transformer."): array for name, array in weights.items()}
            return super().sanitize(weights) if hasattr(super(), "sanitize") else weights

    return Model, module.ModelArgs


class _Training:
    def __init__(self, model: nn.Module, family: str):
        self.model = model
        model.freeze()
        keys = {name for name, _ in model.layers[0].named_modules()
                if name.rpartition(".")[2] in DEFAULT_TARGETS[family]}
        linear_to_lora_layers(model, len(model.layers), {"rank": workloads.RANK, "dropout": 0.0, "keys": keys,
                                                         "scale": workloads.ALPHA / workloads.RANK})
        model.update(tree_unflatten([(name, self._value(name, array.shape, family))
                                     for name, array in tree_flatten(model.trainable_parameters())]))
        model.train()
        self.optimizer = optimizers.AdamW(workloads.LEARNING_RATE, weight_decay=0.0, bias_correction=True)
        self.loss_and_gradients = nn.value_and_grad(model, self._loss)

    def step(self, tokens: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Loss and gradient norm of a batch; both arguments are (B, T)."""
        rows = np.flatnonzero(labels.reshape(-1) != workloads.IGNORED)
        loss, gradients = self.loss_and_gradients(self.model, mx.array(tokens), mx.array(rows),
                                                  mx.array(labels.reshape(-1)[rows]))
        gradients, norm = optimizers.clip_grad_norm(gradients, workloads.MAX_GRAD_NORM)
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state, loss, norm)
        return loss.item(), norm.item()

    @staticmethod
    def _loss(model: nn.Module, tokens: mx.array, rows: mx.array, labels: mx.array) -> mx.array:
        logits = model(tokens)
        return nn.losses.cross_entropy(logits.reshape(-1, logits.shape[-1])[rows].astype(mx.float32), labels,
                                       reduction="mean")

    @staticmethod
    def _value(name: str, shape: tuple[int, ...], family: str) -> mx.array:
        """Everyone's values of A and B, which mlx-lm holds transposed."""
        module, _, part = name.rpartition(".")
        module = module.replace("model.", "transformer.", 1) if family == "gpt2" else module
        key = f"{module}.lora_{part[-1].upper()}"
        return mx.array(np.ascontiguousarray(workloads.adapter_values({key: shape[::-1]})[key].T))
