#!/usr/bin/env python3
"""A small transformer that tells what a sentence is about learns to tell what a question is about.

    python examples/transformer_classifier.py
    python examples/transformer_classifier.py --questions 300 --rank 4

Texts and topics are the 24 articles of the shipped SQuAD sample. The base is trained on the sentences of two thirds of
their paragraphs. Questions use other words in another order; some hundreds of those about these paragraphs, with their
topics, then train the last layer, an adapter, or all weights. Scored are all questions about the other paragraphs.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from jittor_lora import LoraConfig, adapt, adapters_of, trainable
from jittor_lora.data.sources import load_data
from jittor_lora.system.runtime import jt

BATCH, LENGTH, WIDTH = 64, 32, 96  # texts per step, words per text, numbers per word
TARGETS = ("words", "attention", "up", "down", "topic")


class Plan(NamedTuple):
    """How much is done: steps on sentences, steps on questions, and seeds."""

    before: int
    steps: int
    seeds: int


FULL, QUICK = Plan(250, 100, 3), Plan(2, 2, 1)


class Texts(NamedTuple):
    """Word numbers (N, LENGTH), 0 where a text has ended; topics (N,); and the paragraph of each (N,)."""

    words: np.ndarray
    topics: np.ndarray
    paragraphs: np.ndarray


class Row(NamedTuple):
    """A method: the parameters it trains, its CPU seconds, and what it gets right of the test, (seeds, questions)."""

    method: str
    trained: int
    seconds: float
    right: np.ndarray


class Block(jt.Module):
    """Pre-norm attention and MLP."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = jt.nn.LayerNorm(WIDTH), jt.nn.LayerNorm(WIDTH)
        self.attention = jt.attention.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.up, self.down = jt.nn.Linear(WIDTH, 4 * WIDTH), jt.nn.Linear(4 * WIDTH, WIDTH)

    def execute(self, x, ended):
        seen = self.norm1(x)
        x = x + self.attention(seen, seen, seen, key_padding_mask=ended)[0]
        return x + self.down(jt.nn.gelu(self.up(self.norm2(x))))


class Classifier(jt.Module):
    """Word numbers (N, LENGTH) → scores of the topics (N, topics), from the mean over the words."""

    def __init__(self, vocabulary: int, topics: int):
        super().__init__()
        self.words, self.places = jt.nn.Embedding(vocabulary, WIDTH), jt.nn.Embedding(LENGTH, WIDTH)
        self.blocks = jt.nn.ModuleList([Block(), Block()])
        self.norm, self.drop, self.topic = jt.nn.LayerNorm(WIDTH), jt.nn.Dropout(0.1), jt.nn.Linear(WIDTH, topics)

    def execute(self, words):
        x, ended = self.drop(0.1 * (self.words(words) + self.places(jt.arange(LENGTH)))), words == 0
        for block in self.blocks:
            x = block(x, ended)
        kept = (words != 0).float32().unsqueeze(2)
        return self.topic((self.norm(x) * kept).sum(1) / kept.sum(1))


def read() -> tuple[Texts, Texts, int, int]:
    """Sentences, questions, and the numbers of words and topics; every third paragraph is for the test."""
    paragraphs = load_data("sample-train").paragraphs
    titles = list(dict.fromkeys(paragraph.title for paragraph in paragraphs))
    sentences = [(words_of(text), titles.index(p.title), n) for n, p in enumerate(paragraphs) if not is_for_test(n)
                 for text in re.split(r"(?<=[.!?]) ", p.context) if words_of(text)]
    questions = [(words_of(question.text), titles.index(p.title), n) for n, p in enumerate(paragraphs)
                 for question in p.questions]
    counts = Counter(word for words, _, _ in sentences for word in words)
    numbers = {word: 2 + number for number, word in enumerate(word for word in counts if counts[word] > 1)}

    def encoded(texts):
        rows = np.zeros((len(texts), LENGTH), np.int32)
        for row, (words, _, _) in zip(rows, texts):
            row[:len(words)] = [numbers.get(word, 1) for word in words]
        return Texts(rows, *np.array([places for _, *places in texts], np.int32).T)

    return encoded(sentences), encoded(questions), 2 + len(numbers), len(titles)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())[:LENGTH]


def is_for_test(paragraph):
    return paragraph % 3 == 2


def train(net: jt.Module, parameters: list, texts: Texts, steps: int, rate: float, seed: int) -> float:
    """CPU seconds of AdamW with a linearly falling learning rate."""
    optimizer = jt.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    draw, started = np.random.default_rng(seed), time.process_time()
    for step in range(steps):
        optimizer.lr = rate * (1 - step / steps)
        batch = draw.integers(0, len(texts.words), BATCH)
        optimizer.step(jt.nn.cross_entropy_loss(net(jt.array(texts.words[batch])), jt.array(texts.topics[batch])))
    jt.sync_all(True)
    return time.process_time() - started


def gets_right(net: jt.Module, texts: Texts) -> np.ndarray:
    net.eval()
    count = len(texts.words)
    rows = np.resize(texts.words, (-(-count // 256) * 256, LENGTH))  # whole batches: Jittor compiles for one size
    with jt.no_grad():
        scores = [net(jt.array(rows[start:start + 256])).numpy() for start in range(0, len(rows), 256)]
    return np.concatenate(scores)[:count].argmax(1) == texts.topics


def experiment(plan: Plan, count: int, rank: int, rate: float, seed: int) -> tuple[list[Row], np.ndarray]:
    """Train on sentences once, then on questions in each way with each seed.

    Returns: the methods, and the paragraph of each test question.
    """
    jt.set_global_seed(seed)
    sentences, questions, *sizes = read()
    held_out = is_for_test(questions.paragraphs)
    pool, test = (Texts(*(array[part] for array in questions)) for part in (~held_out, held_out))
    base = Classifier(*sizes)
    seconds = train(base, base.parameters(), sentences, plan.before, 2e-3, seed)
    weights = {name: value.numpy() for name, value in base.state_dict().items()}
    frozen = gets_right(base, test)
    tried = {"last layer": [], "LoRA": [], "all weights": []}
    for number in range(seed, seed + plan.seeds):
        chosen = np.random.default_rng(number).choice(len(pool.words), count, replace=False)
        few = Texts(*(array[chosen] for array in pool))
        for method, found in tried.items():
            net = Classifier(*sizes)
            net.load_parameters(weights)
            if method == "LoRA":
                adapt(net, LoraConfig(r=rank, alpha=2.0 * rank, target_modules=TARGETS), seed=number)
                parameters = trainable(net)
            else:
                parameters = net.topic.parameters() if method == "last layer" else net.parameters()
            step = {"last layer": 1e-2, "LoRA": rate, "all weights": 1e-3}[method]
            size = sum(parameter.numel() for parameter in parameters)
            took = train(net, parameters, few, plan.steps, step, number)
            found.append((size, took, gets_right(net, test)))
            if method == "LoRA":
                with adapters_of(net).off():
                    assert np.array_equal(gets_right(net, test), frozen), "without its adapter it is the base"
    tried = {"the base itself": [(sum(p.numel() for p in base.parameters()), seconds, frozen)], **tried}
    return [Row(method, found[0][0], float(np.median([took for _, took, _ in found])),
                np.array([right for _, _, right in found])) for method, found in tried.items()], test.paragraphs


def half_interval(values: np.ndarray, paragraphs: np.ndarray) -> float:
    """Half of the 95 % interval of the mean for new paragraphs, whose questions stand or fall together."""
    sums = np.bincount(paragraphs, values - values.mean())
    return 1.96 * float(np.sqrt(np.square(sums).sum())) / len(values)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Adapt a small transformer from sentences to questions.")
    parser.add_argument("--questions", type=int, default=600, help="with known topics (default: 600)")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA (default: 8)")
    parser.add_argument("--rate", type=float, default=3e-3, help="LoRA's learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args(arguments)
    settings = options.questions, options.rank, options.rate, options.seed
    started = time.perf_counter()
    rows, paragraphs = experiment(QUICK, *settings)  # the first pass compiles what Jittor has not compiled before
    print(f"Compiling, and a quick run: {time.perf_counter() - started:.0f} s")
    if not options.quick:
        started = time.perf_counter()
        rows, paragraphs = experiment(FULL, *settings)
        print(f"The run itself: {time.perf_counter() - started:.0f} s")
    print(f"{len(paragraphs):,} test questions\n{'trained':16} {'parameters':>10} {'CPU s':>8} {'right, %':>12} "
          f"{'over seeds':>12} {'gain, %':>12}")
    for row in rows:
        right, gain = row.right.mean(0), row.right.mean(0) - rows[0].right.mean(0)
        seeds = 100 * row.right.mean(1)
        print(f"{row.method:16} {row.trained:10,} {row.seconds:8.1f} {100 * right.mean():6.1f} "
              f"± {100 * half_interval(right, paragraphs):3.1f} {seeds.min():7.1f}–{seeds.max():.1f} "
              f"{100 * gain.mean():+6.1f} ± {100 * half_interval(gain, paragraphs):3.1f}")


if __name__ == "__main__":
    main()
