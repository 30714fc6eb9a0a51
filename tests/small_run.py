"""A base of 50,000 parameters and a few questions in files, and the command line on them in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import model_files
import tiny

GPT2 = {**model_files.GPT2, "n_positions": 256, "bos_token_id": 299, "eos_token_id": 299}


def make_base(folder: Path, config: dict = GPT2) -> Path:
    """A base folder with its tokenizer."""
    model_files.make_folder(folder, config, tiny.tensors(config))
    model_files.make_bpe().save(str(folder / "tokenizer.json"))
    return folder


def make_squad(path: Path, paragraphs: int, first: int = 0) -> Path:
    """SQuAD JSON with two questions per paragraph."""
    articles = []
    for number in range(first, first + paragraphs):
        context = f"Town {number} has {7 * number + 3} houses. Its river is the R{number}."
        questions = [(f"{number}-houses", "How many houses?", f"{7 * number + 3}"),
                     (f"{number}-river", "Which river?", f"R{number}")]
        qas = [{"id": name, "question": question, "answers": [{"text": text, "answer_start": context.rindex(text)}]}
               for name, question, text in questions]
        articles.append({"title": f"Town {number}", "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


def add_answers(path: Path) -> None:
    """Give each question of `make_squad`'s file about houses a second annotator, with a longer answer."""
    whole = json.loads(path.read_text())
    for paragraph in (article["paragraphs"][0] for article in whole["data"]):
        answers = paragraph["qas"][0]["answers"]
        answers.append({**answers[0], "text": answers[0]["text"] + " houses"})
    path.write_text(json.dumps(whole))


def make_files(folder: Path, train: int, dev: int) -> Path:
    """Write `base`, and `train.json` and `dev.json` with these numbers of paragraphs, to `folder`."""
    make_base(folder / "base")
    make_squad(folder / "train.json", train)
    make_squad(folder / "dev.json", dev, first=train)
    return folder


def start(*arguments: object, stdin: bool = False) -> subprocess.Popen:
    """The command in its own session, so that a signal can be sent to all its processes, as a terminal does.

    Args:
        stdin: connect standard input to a pipe that stays open.
    """
    return subprocess.Popen([sys.executable, "-m", "jittor_lora", *map(str, arguments)], text=True,
                            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
