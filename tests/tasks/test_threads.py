"""The Python API outside the main thread, as a web server or a notebook calls it."""

from __future__ import annotations

import subprocess
import sys

from safetensors.numpy import load_file

import small_run

WORK = """
import sys, threading
from pathlib import Path
from jittor_lora.settings.run import RunConfig

folder = Path(sys.argv[1])

def work(name):
    from jittor_lora.inference.generator import Decoding, Generator
    from jittor_lora.session import load
    from jittor_lora.tasks.evaluate import evaluate
    from jittor_lora.tasks.train import train
    output = folder / name
    train(RunConfig(base=str(folder / "base"), data=str(folder / "train.json"), output=str(output), max_steps=3,
                    batch_size=3, lora_r=2, learning_rate=0.01, precision="fp32", save_every=2))
    evaluate(str(folder / "base"), str(folder / "dev.json"), str(output / "scores"), output / "adapter")
    loaded = load(str(folder / "base"), output / "adapter")
    print(repr(Generator(loaded.model, loaded.tokenizer).continue_text("How many houses?", Decoding(4))))

asked = threading.Event()
early = threading.Thread(target=lambda: (asked.wait(), work("thread")), daemon=True)
early.start()  # before Jittor and the kernels are loaded, as the threads of a server
if sys.argv[2] == "main first":
    work("main")
asked.set()
early.join()
if sys.argv[2] == "thread first":
    work("main")
"""


def test_they_give_the_same_in_another_thread(tmp_path):
    small_run.make_files(tmp_path, 6, 2)
    for order in ("thread first", "main first"):
        folder = tmp_path / order
        folder.mkdir()
        for name in ("base", "train.json", "dev.json"):
            (folder / name).symlink_to(tmp_path / name)
        done = subprocess.run([sys.executable, "-c", WORK, str(folder), order], capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        one, other = done.stdout.splitlines()
        assert one == other
        thread, main = (load_file(folder / name / "adapter/adapter_model.safetensors") for name in ("thread", "main"))
        assert {name: array.tobytes() for name, array in thread.items()} == {
            name: array.tobytes() for name, array in main.items()}
        assert (folder / "thread/scores/predictions.json").read_bytes() == (
            folder / "main/scores/predictions.json").read_bytes()
