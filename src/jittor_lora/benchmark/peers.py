"""transformers with PEFT on torch as a contender, with the settings that are fastest."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch.nn.functional import cross_entropy

from jittor_lora.benchmark import workloads
from jittor_lora.benchmark.worker import Job
from jittor_lora.lora.config import DEFAULT_TARGETS

DROPOUTS = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout")


class Contender:
    """
    Args:
        base: a Hugging Face folder.
        precision: "fp32", "tf32" or "bf16".
        autocast: for bf16, cast float32 weights in each step; otherwise the weights are stored in bf16 (and PEFT's in
            float32, its default).
        compile: use torch.compile.
        device: torch's name of it.
    """

    def __init__(self, base: str, threads: int, precision: str, autocast: bool = False, compile: bool = False,
                 device: str = "cpu"):
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.from_pretrained(base)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            base, config=config, dtype=torch.float32 if autocast else self.dtype, attn_implementation="sdpa").to(device)
        self.context = (lambda: torch.autocast(device, torch.bfloat16)) if autocast else contextlib.nullcontext
        self.compile, self.device = compile, device
        self.tuned = None
        self.checkpoint, self.tokenizer = workloads.open_base(base)

    def free(self) -> None:
        if self.tuned is not None:
            self.model, self.tuned = self.tuned.unload(), None
            self.model.requires_grad_(False)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def step(self, spec: dict[str, Any]) -> Job:
        """A training step on random tokens.

        Args:
            spec: shape: (sequences, length); rows: "all" or "answer"; logits: of "all" rows or "labels".
        """
        tokens, labels = workloads.step_tokens(spec["shape"], self.checkpoint.config.vocab_size)
        labels = workloads.scored(labels, spec["rows"])
        training, results = self._training(spec), []
        return Job(lambda: results.append(training.step(tokens, labels)),
                   lambda: {"loss": results[0][0], "gradient norm": results[0][1]})

    def squad(self, spec: dict[str, Any]) -> Job:
        """An epoch on SQuAD questions.

        Args:
            spec: questions; order: of the batches, "random" or "length"; logits: of "all" rows or "labels".
        """
        groups = workloads.training_questions(self.checkpoint, self.tokenizer, spec["questions"])
        examples, training, epochs = workloads.examples(groups), self._training(spec), iter(range(2**31))
        check = {"loss": training.mean_loss(workloads.examples(workloads.first_questions(groups)))}

        def run() -> None:
            for batch in workloads.padded_batches(examples, spec["order"], next(epochs)):
                training.step(*workloads.padded(batch))

        return Job(run, lambda: check)

    def decode(self, spec: dict[str, Any]) -> Job:
        """Continuation of random prompts.

        Args:
            spec: batch, prompt, new: number of prompts, tokens per prompt, and new tokens; cache: "dynamic" or
                "static", which generate compiles on a GPU; sampling: temperature, top_k and top_p; greedy if left out.
        """
        prompts, _ = workloads.step_tokens((spec["batch"], spec["prompt"]), self.checkpoint.config.vocab_size)
        tokens, results = torch.from_numpy(prompts.astype(np.int64)).to(self.device), []

        def run() -> None:
            new = self._generate(tokens, torch.ones_like(tokens), spec["new"], None, spec["cache"],
                                 **spec.get("sampling", {}))
            results.append(new.tolist())

        return Job(run, lambda: None if "sampling" in spec else {"tokens": results[0]})

    def evaluate(self, spec: dict[str, Any]) -> Job:
        """Greedy answers to SQuAD questions, in left-padded batches of similar length.

        Args:
            spec: questions; new: longest answer in tokens; batch.
        """
        groups = workloads.prompts(self.checkpoint, self.tokenizer, spec["questions"], spec["new"])
        prompts = [example.prompt for example in workloads.examples(groups)]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        ends = [*workloads.newline_tokens(self.tokenizer), self.tokenizer.eos_id]
        results = []

        def run() -> None:
            answers = [""] * len(prompts)
            for start in range(0, len(order), spec["batch"]):
                chosen = order[start : start + spec["batch"]]
                longest = len(prompts[chosen[0]])
                tokens = np.zeros((len(chosen), longest), np.int64)
                mask = np.zeros_like(tokens)
                for row, i in enumerate(chosen):
                    tokens[row, longest - len(prompts[i]) :] = prompts[i]
                    mask[row, longest - len(prompts[i]) :] = 1
                new = self._generate(torch.from_numpy(tokens).to(self.device), torch.from_numpy(mask).to(self.device),
                                     spec["new"], ends, "dynamic")
                for i, row in zip(chosen, new.tolist()):
                    end = next((at for at, token in enumerate(row) if token == self.tokenizer.eos_id), len(row))
                    answers[i] = self.tokenizer.decode(row[:end]).lstrip().split("\n")[0].strip()
            results.append(answers)

        return Job(run, lambda: {"answers": results[0]})

    def gemm(self, spec: dict[str, Any]) -> Job:
        """Products of an (m, k) and a (k, n) matrix.

        Args:
            spec: m, k, n, and times: number of products.
        """
        a, b = (torch.randn(shape).to(self.device, self.dtype)
                for shape in ((spec["m"], spec["k"]), (spec["k"], spec["n"])))

        def run() -> None:
            with torch.inference_mode():
                for _ in range(spec["times"]):
                    torch.mm(a, b)
                if self.device == "cuda":
                    torch.cuda.synchronize()

        return Job(run, lambda: None)

    def _generate(self, tokens, mask, new: int, ends: list[int] | None, cache: str, **sampling: float):
        """The new tokens, (B, up to `new`)."""
        self.model.eval()
        settings = transformers.GenerationConfig(
            max_new_tokens=new, do_sample=bool(sampling), use_cache=True, **sampling, eos_token_id=ends,
            pad_token_id=ends[-1] if ends else 0, cache_implementation="static" if cache == "static" else None)
        with torch.inference_mode(), self.context():
            generated = self.model.generate(tokens, attention_mask=mask, generation_config=settings)
        return generated[:, tokens.shape[1] :]

    def _training(self, spec: dict[str, Any]) -> _Training:
        training = _Training(self.model, self.checkpoint.config.family, self.context, spec.get("logits", "all"),
                             self.compile, self.device)
        self.tuned = training.model
        return training


class _Training:
    def __init__(self, model, family: str, context, logits: str, compile: bool, device: str):
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=workloads.RANK, lora_alpha=workloads.ALPHA, lora_dropout=0.0,
                               target_modules=list(DEFAULT_TARGETS[family]), fan_in_fan_out=family == "gpt2")
        self.model, self.context, self.logits = peft.get_peft_model(model, lora), context, logits
        self.device = device
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        ours = {name[len("base_model.model.") :].replace(".default.weight", ""): p for name, p in named.items()}
        values = workloads.adapter_values({name: tuple(p.shape) for name, p in ours.items()})
        for name, parameter in ours.items():
            parameter.data.copy_(torch.from_numpy(values[name]))
        self.model.train()
        self.parameters = list(named.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=workloads.LEARNING_RATE, weight_decay=0.0, fused=True)
        self.call = torch.compile(self._loss) if compile else self._loss

    def step(self, tokens: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Loss and gradient norm of a batch; both arguments are (B, T)."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.context():
            loss = self.call(*self._tensors(tokens, labels))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, workloads.MAX_GRAD_NORM)
        self.optimizer.step()
        return loss.item(), norm.item()

    def mean_loss(self, examples) -> float:
        """The mean loss per label."""
        total, count = 0.0, 0
        with torch.no_grad(), self.context():
            for batch in workloads.padded_batches(examples, "length", 0):
                tokens, labels = workloads.padded(batch)
                scored = int((labels != workloads.IGNORED).sum())
                total += self._loss(*self._tensors(tokens, labels)).item() * scored
                count += scored
        return total / count

    def _loss(self, tokens, labels):
        # No attention mask is needed: scored rows do not see padding on the right, and torch's purely causal attention
        # is faster.
        if self.logits == "labels":
            network = self.model.get_base_model()
            rows = network.base_model(input_ids=tokens, use_cache=False).last_hidden_state[labels != workloads.IGNORED]
            return cross_entropy(network.lm_head(rows).float(), labels[labels != workloads.IGNORED])
        logits = self.model(input_ids=tokens, use_cache=False).logits.float()  # as in the loss of transformers
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=workloads.IGNORED)

    def _tensors(self, *arrays: np.ndarray):
        return [torch.from_numpy(array.astype(np.int64)).to(self.device) for array in arrays]
