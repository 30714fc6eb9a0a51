"""Requests of mixed size for `serving_load.py`, and the answers that they must get, each computed alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jittor_lora.data.conversations import USER, Turn
from jittor_lora.data.sources import load_data
from jittor_lora.inference.asking import Asked, Prompt, Question, Talk, answers
from jittor_lora.inference.generator import Decoding
from jittor_lora.inference.sampling import Sampling
from jittor_lora.serving.models import Models

COMPLETION, CHAT, ANSWERS, SPANS = "completion", "chat", "answers", "spans"
PATHS = {COMPLETION: "/v1/completions", CHAT: "/v1/chat/completions", ANSWERS: "/v1/answers", SPANS: "/v1/answers"}
QUESTIONS = 5


@dataclass(frozen=True)
class Asking:
    """A request.

    Args:
        kind: of `PATHS`.
        model: that it names.
        asked: one prompt or conversation, or questions about one context.
        decoding: its settings.
        count: continuations of each prompt.
    """

    kind: str
    model: str
    asked: tuple[Asked, ...]
    decoding: Decoding
    count: int = 1

    @property
    def path(self) -> str:
        return PATHS[self.kind]

    def body(self) -> dict[str, Any]:
        sampling, first = self.decoding.sampling, self.asked[0]
        common = {"model": self.model, "max_tokens": self.decoding.max_new_tokens, "temperature": sampling.temperature,
                  "top_p": sampling.top_p, "seed": sampling.seed}
        if isinstance(first, Question):
            method = "span" if self.kind == SPANS else "generation"
            return {**common, "context": first.context, "questions": [one.text for one in self.asked],
                    "methods": [method], "stop": self.decoding.stop}
        stop = {"stop": self.decoding.stop} if self.decoding.stop else {}
        if isinstance(first, Talk):
            turns = [{"role": turn.role, "content": turn.text} for turn in first.turns]
            return {**common, **stop, "messages": turns, "n": self.count}
        return {**common, **stop, "prompt": first.text, "n": self.count}


def mixed(count: int, models: Sequence[str], kinds: Sequence[str], words: int, new: int, seed: int = 0) -> list[Asking]:
    """Distinct requests, short ones more often than long ones.

    Args:
        words: most per prompt or context.
        new: most new tokens per text.
    """
    draw = random.Random(seed)
    paragraphs = [p for p in load_data("sample-dev").paragraphs if len(p.questions) >= QUESTIONS]
    found = []
    for number in range(count):
        kind, paragraph = draw.choice(kinds), draw.choice(paragraphs)
        text = f"({number}) " + " ".join(paragraph.context.split()[:round(words ** draw.random())])
        sampling = Sampling(temperature=0.9, top_p=0.95, seed=draw.randrange(1 << 31)) if draw.random() < 0.5 else \
            Sampling()
        decoding = Decoding(round(new ** draw.random()), sampling, draw.choice([None, "\n", "."]))
        if kind in (ANSWERS, SPANS):
            questions = paragraph.questions[: draw.randint(1, QUESTIONS)]
            asked: tuple[Asked, ...] = tuple(Question(text, question.text) for question in questions)
            found.append(Asking(kind, draw.choice(models), asked, Decoding(decoding.max_new_tokens, sampling, "\n")))
        else:
            asked = (Talk((Turn(USER, text),)) if kind == CHAT else Prompt(text),)
            found.append(Asking(kind, draw.choice(models), asked, decoding, draw.choice([1, 1, 1, 2, 3])))
    return found


def expected(models: Models, requests: Iterable[Asking]) -> list[dict[int, str]]:
    """The texts of each request by number, or its spans as "start:end"."""
    return [_expected(models, request) for request in requests]


def _expected(models: Models, request: Asking) -> dict[int, str]:
    served = models[request.model]
    models.session.set_adapter(served.adapter if served.adapter else [])
    if request.kind == SPANS:
        questions = [(one.context, one.text) for one in request.asked]
        groups = [(prefix, prompts, request.asked[0].context) for prefix, prompts in served.generator.groups(questions)]
        return {i: f"{span.start}:{span.end}" for i, span in enumerate(served.extractor.extract(groups))}
    generator = served.chat if request.kind == CHAT else served.generator
    texts = answers(generator, request.asked, request.decoding, request.count)
    return dict(enumerate(text for several in texts for text in several))
