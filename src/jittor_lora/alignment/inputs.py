"""What both sides of an alignment train on, as files that a script without this package can read.

| file | content |
|---|---|
| `align.json` | the settings, and by what the inputs are known again |
| `inputs/steps.jsonl` | one line per step, a list of examples: id, token ids, weight of each token as a label |
| `inputs/first_example.jsonl` | the first of them, with the rows that are recorded, and those that predict a label |
| `inputs/held_out.jsonl` | validation examples: token ids, and the rows that predict a label |
| `inputs/questions.jsonl` | validation questions: id, token ids of the prompt |
| `inputs/tokenizer.json` | turns answers into text |
| `inputs/adapter/` | the adapter before training, in PEFT's layout |
| `inputs/base/` | the base in Hugging Face's layout, where it is not in that layout already |
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from jittor_lora import __version__
from jittor_lora.data.groups import Branch, TokenGroup, separate
from jittor_lora.files.atomic import atomic_write, make_folder, write_json
from jittor_lora.formats.hugging_face import write_checkpoint
from jittor_lora.formats.peft import save_adapter
from jittor_lora.inference.generator import Generator
from jittor_lora.settings.align import AlignConfig
from jittor_lora.system.runtime import threads
from jittor_lora.tasks.fingerprints import identity_of_data
from jittor_lora.tasks.questions import Questions
from jittor_lora.tasks.train import Prepared, prepare, subset
from jittor_lora.training.batches import steps_from

SETTINGS, INPUTS = "align.json", "inputs"
MOST_ROWS = 32  # per text, of activations and logits: all rows of a long example would take a gigabyte


@dataclass(frozen=True)
class Inputs:
    """
    Attributes:
        prepared: our side before its first step.
        steps: the examples of each step.
        first: the first example of the first step, alone.
        held_out: validation examples, each alone.
        questions: None without validation data.
        settings: the content of align.json.
    """

    prepared: Prepared
    steps: list[list[TokenGroup]]
    first: TokenGroup
    held_out: list[TokenGroup]
    questions: Optional[Questions]
    settings: dict[str, Any]

    @property
    def is_folder(self) -> bool:
        """Is the base a folder that transformers can read as it is?"""
        session = self.prepared.session
        return session.base.kind == "folder" and session.checkpoint.original is None


def collect(config: AlignConfig) -> Inputs:
    """
    Raises:
        UserError: see `tasks.train.prepare`.
    """
    run = config.run()
    prepared = prepare(run)
    steps = [batch for _, batch in steps_from(0, config.steps, prepared.groups, run)]
    first = separate(steps[0][:1])[0]
    held_out = separate(prepared.dev_groups)[: config.held_out]
    questions = None
    if prepared.dev_data is not None and config.eval_questions:
        questions = Questions.of(subset(prepared.dev_data, config.eval_questions, config.seed),
                                 prepared.session.tokenizer, prepared.prompting.template, prepared.limit,
                                 scoring=config.scoring, chat=prepared.chat)
        questions = dataclasses.replace(questions, no_answers=False)  # greedy texts, whatever the odds of no answer
    inputs = Inputs(prepared, steps, first, held_out, questions, {})
    return dataclasses.replace(inputs, settings=_settings(config, inputs))


def write(folder: Path, inputs: Inputs) -> None:
    """Write all files; align.json, by which the others are found, last."""
    prepared, into = inputs.prepared, folder / INPUTS
    weight = prepared.config.prompt_loss_weight
    shutil.rmtree(into, ignore_errors=True)
    make_folder(into)
    _write_lines(into / "steps.jsonl", ([written(group, weight) for group in separate(step)]
                                        for step in inputs.steps))
    first = written(inputs.first, weight)
    end = len(first["tokens"]) - 1
    _write_lines(into / "first_example.jsonl", [{**first, "recorded": [max(0, end - MOST_ROWS), end],
                                                 "rows": label_rows(inputs.first, weight)}])
    _write_lines(into / "held_out.jsonl", ({"tokens": written(group, weight)["tokens"],
                                            "rows": label_rows(group, weight)} for group in inputs.held_out))
    _write_lines(into / "questions.jsonl", (
        {"id": branch.id, "prompt": group.prefix + branch.prompt}
        for group in (inputs.questions.groups if inputs.questions else ()) for branch in group.branches))
    prepared.session.tokenizer.save(into)
    # Under the name by which the script finds the base.
    save_adapter(into / "adapter", prepared.session.adapter, inputs.settings["base"],
                 prepared.session.model.config.family, convert=False)
    if not inputs.is_folder:
        write_checkpoint(into / "base", prepared.session.checkpoint)
    write_json(folder / SETTINGS, inputs.settings)


def label_rows(group: TokenGroup, prompt_loss_weight: float) -> list[int]:
    """The rows of one example that predict a label, at most the last `MOST_ROWS`."""
    weights = written(group, prompt_loss_weight)["weights"]
    return [place - 1 for place, weight in enumerate(weights) if weight][-MOST_ROWS:]


def written(group: TokenGroup, prompt_loss_weight: float) -> dict[str, Any]:
    """One example whole. The first token is never a label."""
    branch: Branch = group.branches[0]
    before = len(group.prefix) + len(branch.prompt)
    weights = [prompt_loss_weight] * before + [1.0] * len(branch.completion)
    for start, end in branch.unscored:
        weights[before + start : before + end] = [prompt_loss_weight] * (end - start)
    weights[0] = 0.0
    return {"id": branch.id, "tokens": group.prefix + branch.prompt + branch.completion, "weights": weights}


def _settings(config: AlignConfig, inputs: Inputs) -> dict[str, Any]:
    prepared = inputs.prepared
    run, session, model = prepared.config, prepared.session, prepared.session.model
    questions = inputs.questions
    generator = Generator(model, session.tokenizer, prepared.prompting.template, prepared.chat)
    plain_scores = model.config.scores_scaled and not model.config.scores_by_layer
    return {
        "jittor_lora": __version__,
        "base": os.path.realpath(session.base.path) if inputs.is_folder else f"{INPUTS}/base",
        "base_fingerprint": session.fingerprint,
        "base_precision": run.base_precision,
        "adapter": dataclasses.asdict(session.adapter.config),
        "examples": identity_of_data([group for step in inputs.steps for group in step]),
        "held_out": identity_of_data(inputs.held_out) if inputs.held_out else None,
        "questions": identity_of_data(questions.groups) if questions else None,
        "threads": threads(),
        "seed": run.seed,
        "steps": config.steps,
        "examples_at_a_time": run.batch_size,
        "max_tokens_per_stream": run.max_tokens_per_stream,
        "share_prefixes": run.share_prefixes,
        "activation_checkpointing": run.activation_checkpointing,
        "prompt_loss_weight": run.prompt_loss_weight,
        "label_smoothing": run.label_smoothing,
        "learning_rate": run.learning_rate,
        "schedule": {"constant": "constant_with_warmup"}.get(run.schedule, run.schedule),
        "warmup_steps": run.warmup(config.steps),
        "betas": [run.adam_beta1, run.adam_beta2],
        "epsilon": run.adam_epsilon,
        "weight_decay": run.weight_decay,
        "max_grad_norm": run.max_grad_norm,
        "loraplus_lr_ratio": run.loraplus_lr_ratio,
        "loraplus_lr_embedding": run.loraplus_lr_embedding,
        "pad_id": model.config.eos_token_id or 0,
        "end_ids": sorted(generator.ends),
        "max_new_tokens": questions.max_new_tokens if questions else 0,
        "first_line": bool(questions and questions.stop),
        "attention": "sdpa" if plain_scores else "eager",  # transformers' other one has no such scales
    }


def _write_lines(path: Path, values: Iterable[Any]) -> None:
    with atomic_write(path) as stream:
        for value in values:
            stream.write(json.dumps(value, ensure_ascii=False) + "\n")


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> Sequence[str]:
    """Lines on the settings that differ."""
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    return [f"{name}: {before.get(name)!r} there, now {now.get(name)!r}" for name in {**before, **now}
            if before.get(name) != now.get(name)]
