"""What `serving.py` asks: texts to continue, and contexts with five questions each, from the shipped sample."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import httpx
from serving_client import Reply, client, in_parallel, stream
from serving_contenders import Contender, Entry, Option
from serving_servers import Server

from jittor_lora.data.sources import load_data
from jittor_lora.data.squad import Paragraph
from jittor_lora.data.template import Template

QUESTIONS = 5
WARM_UP_NEW, WARM_UP_WORDS = 4, 8
FEWEST = 4  # requests or contexts of a run
UNITS = 1000  # numbers that differ by this stand before the same passage
REQUESTS = {1: 8, 4: 24, 16: 64, 64: 128}  # by clients
CONTEXTS = {1: 6, 4: 16, 16: 32, 64: 64}
ANSWERS, TOGETHER, ONE_BY_ONE = "/v1/answers", "all at once", "one after another"
GREEDY = {"temperature": 0.0}


@lru_cache
def paragraphs() -> list[Paragraph]:
    """Those of the sample that have five questions."""
    return [p for name in ("sample-dev", "sample-train") for p in load_data(name).paragraphs
            if len(p.questions) >= QUESTIONS]


@dataclass
class Workload:
    """
    Args:
        clients: that ask at the same time, each one thing at a time.
        units: requests or contexts.
        new: most tokens per text.
        words: most per prompt or context.
        first_number: that its requests begin with.
        adapters: that requests name in turn.
        trial: the share of the units that a trial of a variant has.
    """

    clients: int
    units: int
    new: int
    words: int
    first_number: int
    adapters: int = 1
    trial: float = 0.25

    part = ""
    texts_per_unit = 1

    @property
    def title(self) -> str:
        return f"{self.part}: {self.clients} client{'s' * (self.clients > 1)}, {self.way()}"

    def way(self) -> str:
        return f"{self.adapters} adapter{'s' * (self.adapters > 1)}"

    def record(self) -> dict[str, Any]:
        return {"part": self.part, "way": self.way(), **asdict(self)}

    def entries(self, contenders: Sequence[Contender]) -> list[Entry]:
        """Who is compared."""
        return [Entry(c.name, c, [Option(server.name, server) for server in c.servers]) for c in contenders]

    async def prepare(self, server: Server, numbers: Iterator[int], share: float) -> None:
        """Choose what is asked next, and send what is not timed."""
        count = max(self.clients, FEWEST, round(self.units * share))
        self.chosen = [self.passage(number) for number in itertools.islice(numbers, count)]

    async def run(self, option: Option) -> tuple[list[Reply], float]:
        """Replies in the order of units, and seconds."""
        async with client(option.server.address, self.clients * self.texts_per_unit) as http:
            tasks = [partial(self.unit, http, option, i, *passage) for i, passage in enumerate(self.chosen)]
            return await in_parallel(tasks, self.clients)

    async def unit(self, http: httpx.AsyncClient, option: Option, index: int, text: str,
                   questions: Sequence[str]) -> Reply:
        raise NotImplementedError

    def passage(self, number: int) -> tuple[str, list[str]]:
        """A text that begins with its number, and questions about it."""
        paragraph = paragraphs()[number % UNITS * 7919 % len(paragraphs())]
        words = paragraph.context.split()[: self.words]
        return f"({number}) {' '.join(words)}", [question.text for question in paragraph.questions[:QUESTIONS]]

    def completion(self, prompt: str, **others: Any) -> dict[str, Any]:
        return {"prompt": prompt, "max_tokens": self.new, **GREEDY, **others}


@dataclass
class Texts(Workload):
    """Each request continues a passage."""

    part = "texts"

    async def unit(self, http, option, index, text, questions) -> Reply:
        body = {**option.server.body(index % self.adapters), **self.completion(text)}
        return await stream(http, "/v1/completions", body)


@dataclass
class Contexts(Workload):
    """Each client asks five questions about a context, then about the next one: in one request where the server has
    one for that, else by completions, together or one after another.

    Args:
        warm: whether the contexts were read before.
    """

    warm: bool = False

    part = "contexts"
    texts_per_unit = QUESTIONS

    def way(self) -> str:
        return "contexts read before" if self.warm else "new contexts"

    def entries(self, contenders: Sequence[Contender]) -> list[Entry]:
        found = []
        for c in contenders:
            if c.ours:
                found.append(Entry(f"{c.name}, {ANSWERS}", c, [Option(s.name, s, ANSWERS) for s in c.servers]))
            name = f"{c.name}, completions" if c.ours else c.name
            found.append(Entry(name, c, [Option(f"{s.name}, {ask}", s, ask) for s in c.servers
                                         for ask in (TOGETHER, ONE_BY_ONE)]))
        return found

    async def prepare(self, server: Server, numbers: Iterator[int], share: float) -> None:
        await super().prepare(server, numbers, share)
        if self.warm:
            async with client(server.address, 1) as http:
                for text, questions in self.chosen:
                    prefix, _ = Template().prompt_pieces(text, questions[0])
                    body = {**server.body(0), **self.completion(prefix), "max_tokens": 1}
                    await stream(http, "/v1/completions", body)

    async def unit(self, http, option, index, text, questions) -> Reply:
        body = {**option.server.body(0), **GREEDY, "max_tokens": self.new, "stop": []}
        if option.ask == ANSWERS:
            return await stream(http, ANSWERS, {**body, "context": text, "questions": questions}, usage=False)
        asked = [partial(stream, http, "/v1/completions",
                         {**body, "prompt": "".join(Template().prompt_pieces(text, question))})
                 for question in questions]
        replies, seconds = await in_parallel(asked, QUESTIONS if option.ask == TOGETHER else 1)
        return Reply(replies[0].first if option.ask == ONE_BY_ONE else min(reply.first for reply in replies), seconds,
                     {i: reply.texts.get(0, "") for i, reply in enumerate(replies)},
                     {i: reply.reasons.get(0, "") for i, reply in enumerate(replies)},
                     *(sum(getattr(reply, name) for reply in replies)
                       for name in ("tokens", "prompt_tokens", "cached_tokens")))


async def warm_up(server: Server) -> None:
    """Let a server compile and allocate: two requests to each adapter, and one with all questions where it has that."""
    first = Texts(1, FEWEST, WARM_UP_NEW, WARM_UP_WORDS, 0)
    async with client(server.address, 1) as http:
        for number in range(2 * (len(server.bodies) - 1)):
            body = {**server.body(number // 2), **first.completion(first.passage(number)[0])}
            await stream(http, "/v1/completions", body)
        if server.answers:
            context, questions = first.passage(UNITS - 1)
            await stream(http, ANSWERS, {**server.body(0), **GREEDY, "context": context, "questions": questions,
                                         "max_tokens": WARM_UP_NEW, "stop": []}, usage=False)


def workloads(args: argparse.Namespace) -> list[Workload]:
    """All that is to be measured. Each has its own numbers."""
    counts, parts, found = [int(n) for n in args.clients.split(",")], args.parts.split(","), []
    for kind, units, options in ((Texts, REQUESTS, [{"adapters": 1}, {"adapters": 4}]),
                                 (Contexts, CONTEXTS, [{"warm": False}, {"warm": True}])):
        for option, count in itertools.product(options if kind.part in parts else [], counts):
            found.append(kind(clients=count, units=units.get(count, 2 * count), new=args.new, words=args.words,
                              first_number=100_000 * (1 + len(found)), **option))
    return found
