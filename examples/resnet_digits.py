#!/usr/bin/env python3
"""Jittor's ResNet-18 can read upright digits; from a few labelled images it learns those that lie on their side.

    python examples/resnet_digits.py
    python examples/resnet_digits.py --images 50 --rank 4

LoRA against training all weights, and against training the last layer alone. The digits are scikit-learn's (1,797
images of 8 × 8 pixels from the UCI repository, part of `pip install scikit-learn`), enlarged to 32 × 32. One network is
trained on upright ones; each of several seeds then draws other labelled images for the three methods to learn from.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from jittor_lora import LoraConfig, adapt, adapters_of, trainable
from jittor_lora.system.runtime import jt

# isort: split
from jittor.models import resnet18  # after our import, which sets up Jittor's compiler

BATCH = 32
SCALE = 4  # each pixel becomes 4 × 4


class Plan(NamedTuple):
    """How much is done: steps on upright digits, steps on sideways ones, and seeds."""

    before: int
    steps: int
    seeds: int


FULL, QUICK = Plan(140, 60, 3), Plan(2, 2, 1)


class Row(NamedTuple):
    """A method: the parameters it trains, its CPU seconds, and which test images are read rightly, (seeds, images)."""

    method: str
    trained: int
    seconds: float
    sideways: np.ndarray
    upright: np.ndarray


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upright and sideways images, (1797, 3, 32, 32), and labels, in random order."""
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    upright = (found.images[order] / 8 - 1).astype(np.float32)
    large = [images.repeat(SCALE, 1).repeat(SCALE, 2)[:, None].repeat(3, 1)
             for images in (upright, np.rot90(upright, axes=(1, 2)))]
    return large[0], large[1], found.target[order].astype(np.int32)


def keep_statistics(net: jt.Module) -> None:
    """Batch norm computes with the statistics it has and leaves them alone: they belong to the base.

    `net.eval()` would do so too, but in Jittor it also stops all gradients.
    """
    for module in net.modules():
        if isinstance(module, jt.nn.BatchNorm):
            module.eval()


def train(net: jt.Module, parameters: list, images: np.ndarray, labels: np.ndarray, steps: int, rate: float,
          seed: int) -> float:
    """CPU seconds of AdamW with a linearly falling learning rate."""
    optimizer = jt.optim.AdamW(parameters, lr=rate)
    draw, started = np.random.default_rng(seed), time.process_time()
    for step in range(steps):
        optimizer.lr = rate * (1 - step / steps)
        batch = draw.choice(len(images), BATCH, replace=False)
        optimizer.step(jt.nn.cross_entropy_loss(net(jt.array(images[batch])), jt.array(labels[batch])))
    jt.sync_all(True)
    return time.process_time() - started


def reads(net: jt.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images the network reads rightly."""
    net.eval()
    with jt.no_grad():
        scores = [net(jt.array(images[start:start + 200])).numpy() for start in range(0, len(images), 200)]
    return np.concatenate(scores).argmax(1) == labels


def experiment(plan: Plan, images: int, rank: int, rate: float, seed: int) -> list[Row]:
    """Train on upright digits once, then learn sideways ones in each way with each seed."""
    jt.set_global_seed(seed)
    upright, sideways, labels = digits(seed)
    old, test = slice(0, 800), slice(997, None)  # between them those of which the methods get a few
    base = resnet18(num_classes=10)
    seconds = train(base, base.parameters(), upright[old], labels[old], plan.before, 1e-3, seed)
    weights = {name: value.numpy() for name, value in base.state_dict().items()}

    def scores(net):
        return reads(net, sideways[test], labels[test]), reads(net, upright[test], labels[test])

    frozen = scores(base)
    tried = {"last layer": [], "LoRA": [], "all weights": []}
    for number in range(seed, seed + plan.seeds):
        few = 800 + np.random.default_rng(number).choice(197, images, replace=False)
        for method, found in tried.items():
            net = resnet18(num_classes=10)
            net.load_parameters(weights)
            if method != "all weights":
                keep_statistics(net)
            if method == "LoRA":
                adapt(net, LoraConfig(r=rank, alpha=2.0 * rank, target_modules=r".*(conv\d|downsample\.0|fc)"),
                      seed=number)
                parameters = trainable(net)
            else:
                parameters = net.fc.parameters() if method == "last layer" else net.parameters()
            count = sum(parameter.numel() for parameter in parameters)
            step = {"last layer": 1e-2, "LoRA": rate, "all weights": 1e-3}[method]
            took = train(net, parameters, sideways[few], labels[few], plan.steps, step, number)
            found.append((count, took, *scores(net)))
            if method == "LoRA":
                with adapters_of(net).off():
                    assert all(map(np.array_equal, scores(net), frozen)), "without its adapter it is the base"
    tried = {"the base itself": [(sum(p.numel() for p in base.parameters()), seconds, *frozen)], **tried}
    return [Row(method, found[0][0], float(np.median([took for _, took, _, _ in found])),
                np.array([right for _, _, right, _ in found]), np.array([right for _, _, _, right in found]))
            for method, found in tried.items()]


def percent(right: np.ndarray) -> str:
    """Mean accuracy in percent, and half of its 95 % interval for new images, given these seeds."""
    by_image = right.mean(0)
    return f"{100 * by_image.mean():5.1f} ± {196 * by_image.std(ddof=1) / len(by_image) ** 0.5:3.1f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Adapt Jittor's ResNet-18 to digits that lie on their side.")
    parser.add_argument("--images", type=int, default=100, help="labelled sideways digits, at most 197 (default: 100)")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA (default: 8)")
    parser.add_argument("--rate", type=float, default=3e-3, help="LoRA's learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args(arguments)
    settings = options.images, options.rank, options.rate, options.seed
    started = time.perf_counter()
    rows = experiment(QUICK, *settings)  # the first pass compiles what Jittor has not compiled before
    print(f"Compiling, and a quick run: {time.perf_counter() - started:.0f} s")
    if not options.quick:
        started = time.perf_counter()
        rows = experiment(FULL, *settings)
        print(f"The run itself: {time.perf_counter() - started:.0f} s")
    print(f"{'trained':16} {'parameters':>10} {'CPU s':>8} {'sideways, %':>13} {'over seeds':>13} {'upright, %':>13}")
    for row in rows:
        lowest, highest = 100 * row.sideways.mean(1).min(), 100 * row.sideways.mean(1).max()
        print(f"{row.method:16} {row.trained:10,} {row.seconds:8.1f} {percent(row.sideways):>13} "
              f"{lowest:6.1f}–{highest:.1f}  {percent(row.upright):>13}")


if __name__ == "__main__":
    main()
