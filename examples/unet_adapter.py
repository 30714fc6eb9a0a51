#!/usr/bin/env python3
"""A small U-Net that removes noise learns to fill gaps and to sharpen, by one adapter each.

    python examples/unet_adapter.py
    python examples/unet_adapter.py --rank 4 --output runs/unet

The pictures are scikit-learn's digits (pip install scikit-learn). The table has the mean error of what each state of
the network makes of each kind of damage, as peak signal-to-noise ratio in dB: more is better, and the error halves with
every 6 dB. Both adapters go to --output in PEFT's layout, and are loaded into a new network at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from jittor_lora import LoraConfig, adapt, load_adapter, save_adapter, trainable
from jittor_lora.system.runtime import jt

BATCH = 64
FULL, QUICK = (600, 300), (3, 3)  # steps of the base, and of each adapter


def conv(inside: int, outside: int, stride: int = 1) -> jt.Module:
    return jt.nn.Conv2d(inside, outside, 3, stride=stride, padding=1)


class UNet(jt.Module):
    """Damaged pictures (N, 1, 8, 8) → repaired ones: two levels down, two up, and a shortcut across at each level."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.enter, self.down1, self.down2 = conv(1, width), conv(width, 2 * width, 2), conv(2 * width, 4 * width, 2)
        self.middle = conv(4 * width, 4 * width)
        self.up2, self.up1 = conv(4 * width + 2 * width, 2 * width), conv(2 * width + width, width)
        self.leave = conv(width, 1)

    def execute(self, x):
        wide = jt.nn.relu(self.enter(x))  # (N, width, 8, 8)
        half = jt.nn.relu(self.down1(wide))  # (N, 2 width, 4, 4)
        low = jt.nn.relu(self.middle(jt.nn.relu(self.down2(half))))  # (N, 4 width, 2, 2)
        half = jt.nn.relu(self.up2(jt.concat([larger(low), half], 1)))
        wide = jt.nn.relu(self.up1(jt.concat([larger(half), wide], 1)))
        return x + self.leave(wide)


def larger(x):
    """Each pixel becomes 2 × 2."""
    n, channels, height, width = x.shape
    return x.reshape((n, channels, height, 1, width, 1)).expand((n, channels, height, 2, width, 2)).reshape(
        (n, channels, 2 * height, 2 * width))


def noise(pictures: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return pictures + 0.5 * draw.standard_normal(pictures.shape, np.float32)


def gap(pictures: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Two neighbouring rows of each picture are missing."""
    first = draw.integers(0, 7, len(pictures))[:, None]
    rows = np.arange(8)
    missing = (rows == first) | (rows == first + 1)
    return np.where(missing[:, None, :, None], np.float32(0), pictures)


def blur(pictures: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Each pixel is the mean of the 3 × 3 around it."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return sum(padded[:, :, i:i + 8, j:j + 8] for i in range(3) for j in range(3)) / np.float32(9)


DAMAGES = {"noise": noise, "gap": gap, "blur": blur}


def train(net: jt.Module, parameters: list, damage, pictures: np.ndarray, steps: int, rate: float, seed: int) -> None:
    """AdamW on the squared error, with a linearly falling learning rate."""
    optimizer, draw = jt.optim.AdamW(parameters, lr=rate), np.random.default_rng(seed)
    for step in range(steps):
        optimizer.lr = rate * (1 - step / steps)
        batch = pictures[draw.integers(0, len(pictures), BATCH)]
        error = net(jt.array(damage(batch, draw))) - jt.array(batch)
        optimizer.step((error * error).mean())


def quality(net: jt.Module, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Damage → peak signal-to-noise ratio of every picture in dB; the pictures' peak is 2, from black to white."""
    draw, found = np.random.default_rng(0), {}
    for name, damage in DAMAGES.items():
        with jt.no_grad():
            repaired = net(jt.array(damage(pictures, draw))).numpy()
        found[name] = 10 * np.log10(4 / np.square(repaired - pictures).mean((1, 2, 3)))
    return found


def experiment(steps: tuple[int, int], rank: int, seed: int, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """State of the network → its quality."""
    jt.set_global_seed(seed)
    pictures = (load_digits().images / 8 - 1).astype(np.float32)[:, None]
    pictures = pictures[np.random.default_rng(seed).permutation(len(pictures))]
    seen, test = pictures[:1200], pictures[1200:]
    net = UNet()
    train(net, net.parameters(), noise, seen, steps[0], 1e-3, seed)
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    states = {"damaged": {name: 10 * np.log10(4 / np.square(damage(test, np.random.default_rng(0)) - test).mean(
        (1, 2, 3))) for name, damage in DAMAGES.items()}, "base": quality(net, test)}

    config = LoraConfig(r=rank, alpha=2.0 * rank, target_modules=r"enter|down\d|middle|up\d|leave")
    adapters = adapt(net, config, name="gap", seed=seed)
    adapters.add(config, name="blur", seed=seed)
    for name in adapters:
        adapters.activate(name)
        train(net, trainable(net), DAMAGES[name], seen, steps[1], 3e-3, seed)
        states[f"{name} adapter"] = quality(net, test)
        save_adapter(net, folder / name, name)
    with adapters.off():
        states["off"] = quality(net, test)
    adapters.merge()  # of the active one, blur: plain convolutions again, no slower than the base
    states["blur merged"] = quality(net, test)
    adapters.unmerge()
    adapters.activate("gap")
    states["gap again"] = quality(net, test)

    other = UNet()
    other.load_parameters(weights)
    load_adapter(other, folder / "gap", "gap")
    states["gap loaded"] = quality(other, test)
    print(f"{sum(map(np.size, weights.values())):,} weights; an adapter trains "
          f"{sum(parameter.numel() for parameter in trainable(other)):,}")
    return states


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Adapt a small U-Net to other kinds of damage.")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the adapters (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        started, computed = time.perf_counter(), time.process_time()
        states = experiment(QUICK if options.quick else FULL, options.rank, options.seed,
                            options.output or Path(temporary))
    print(f"{time.perf_counter() - started:.0f} s, {time.process_time() - computed:.0f} CPU s")
    print(f"{'dB, ± 95 %':13}", *(f"{name:>14}" for name in DAMAGES))
    for state, found in states.items():
        print(f"{state:13}", *(f"{values.mean():7.2f} ± {1.96 * values.std(ddof=1) / len(values) ** 0.5:4.2f}"
                               for values in found.values()))


if __name__ == "__main__":
    main()
