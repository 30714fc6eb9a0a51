"""200 requests at once, in random order, joining and leaving at random: each text is that of a separate run."""

from __future__ import annotations

import contextlib
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from jittor_lora.data.conversations import Turn
from jittor_lora.inference.asking import Prompt, Question, Talk, answers
from jittor_lora.inference.generator import Decoding
from jittor_lora.inference.sampling import Sampling
from jittor_lora.serving.compute.engine import EngineLimits
from serving import served
from serving.served import CONTEXT, QUESTIONS

pytestmark = pytest.mark.slow
MODELS = (served.BASE, "one", "two", "three")
WORDS = "the town has houses river Elbe café opens at 42 北京 and its".split()


class Request:
    """What is asked, and how the same is computed alone."""

    def __init__(self, draw: random.Random):
        self.model, self.stream = draw.choice(MODELS), draw.random() < 0.5
        self.leaves = draw.random() < 0.15  # before the end
        temperature, seed, most = draw.choice((0, 0.8, 1.3)), draw.randrange(100), draw.randrange(1, 40)
        self.count = 1 if temperature == 0 else draw.choice((1, 1, 3))
        text, stop = " ".join(draw.choices(WORDS, k=draw.randrange(1, 12))), draw.choice((None, "e", "\n"))
        self.fields = {"temperature": temperature, "seed": seed, "max_tokens": most}
        sampling = Sampling(temperature, seed=seed)
        kind = draw.choice(("completions", "chat/completions", "answers"))
        self.path = f"/v1/{kind}"
        if kind == "answers":
            context = draw.choice((CONTEXT, f"{CONTEXT} {text}"))
            self.asked, self.count = [Question(context, question) for question in QUESTIONS], 1
            self.fields.update(context=context, questions=QUESTIONS)
            self.decoding = Decoding(most, sampling, "\n")
            return
        self.asked = [Talk((Turn("user", text),)) if kind.startswith("chat") else Prompt(text)]
        self.fields.update(n=self.count, stop=stop)
        self.fields.update({"messages": [{"role": "user", "content": text}]} if kind.startswith("chat")
                           else {"prompt": text})
        self.decoding = Decoding(most, sampling, stop)

    def ask(self, server, wait: float):
        """The texts by the API; None if the client leaves before the end."""
        time.sleep(wait)
        body = {"model": self.model, **self.fields}
        if self.leaves:
            with contextlib.suppress(httpx.ReadTimeout), server.client.stream(
                    "POST", self.path, json={**body, "stream": self.stream}, timeout=wait / 3) as response:
                next(response.iter_lines(), None)
            return None
        return texts_of(server.chunks(self.path, **body)) if self.stream else whole(server.answer(self.path, **body))

    def alone(self, server):
        one = server.service.models[self.model]
        generator = one.chat if isinstance(self.asked[0], Talk) else one.generator
        with server.service.session.adapters.only(*([one.adapter] if one.adapter else [])):
            return [text for texts in answers(generator, self.asked, self.decoding, self.count) for text in texts]


def whole(answer):
    if "answers" in answer:
        return [one["text"] for one in answer["answers"]]
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in answer["choices"]]


def texts_of(chunks):
    """The texts that these pieces make up."""
    found = {}
    for chunk in chunks:
        for piece in chunk.get("choices", [chunk]):
            index = piece.get("index", piece.get("question"))
            text = piece.get("text") or piece.get("delta") or ""
            if index is not None:
                found[index] = found.get(index, "") + (text if isinstance(text, str) else text.get("content", ""))
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("limits", [EngineLimits(), EngineLimits(batch_size=5, cache_bytes=100_000, read_tokens=7)],
                         ids=["as they are", "tight"])
def test_texts_do_not_depend_on_who_else_asks(served_files, limits):
    draw = random.Random(7)
    requests = [Request(draw) for _ in range(200)]
    with served.running(served_files, limits=limits) as server:
        expected = server.computed(lambda: [request.alone(server) for request in requests])
        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(request.ask, server, draw.random() * 0.3) for request in requests]
            found = [future.result() for future in asked]
        statistics = server.service.engine.statistics()
    wrong = [(json.dumps(request.fields), texts, right) for request, texts, right in zip(requests, found, expected)
             if texts is not None and texts != right]
    assert not wrong, wrong[:3]
    assert sum(texts is None for texts in found) > 15 and statistics.failed == 0
    assert statistics.cached_tokens > 500
