"""Comparison reports with texts that try to break out of them."""

from __future__ import annotations

import json
from pathlib import Path

from jittor_lora.cli.main import main

HOSTILE = ("</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> "
           "<!-- &amp; @DATA@")
QUESTION_WORDS = ("What", "Who", "When")


def squad_file(path: Path, questions: int) -> Path:
    """SQuAD JSON; question i is about paragraph i // 5, its answer is "answer i" after an emoji."""
    paragraphs = []
    for start in range(0, questions, 5):
        numbers = range(start, min(start + 5, questions))
        context = f"😀 {HOSTILE} " + " ".join(f"answer {number}," for number in numbers)
        paragraphs.append({"context": context, "qas": [
            {"id": f"q{number}", "question": f"{QUESTION_WORDS[number % 3]} is number {number}?",
             "answers": [{"text": f"answer {number}", "answer_start": context.index(f"answer {number},")}]}
            for number in numbers]})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}))
    return path


def make_report(folder: Path, questions: int = 60) -> Path:
    """A report of three systems: "base" right on every tenth question, "A & <b>" on every second, "odd" on the other
    half, with one hostile answer, one empty and one missing."""
    data = squad_file(folder / "dev.json", questions)
    rights = {"base": lambda i: i % 10 == 0, "A & <b>": lambda i: i % 2 == 0, "odd": lambda i: i % 2}
    arguments = []
    for number, (name, right) in enumerate(rights.items()):
        answers = {f"q{i}": f"answer {i}" if right(i) else f"answer {i} or so" if i % 3 else "no"
                   for i in range(questions)}
        if name == "base":
            answers["q1"], answers["q2"] = HOSTILE, ""
            del answers["q3"]
        path = folder / f"{number}.json"
        path.write_text(json.dumps(answers))
        arguments.append(f"{name}={path}")
    assert main(["compare", *arguments, "--data", str(data), "--train-data", str(data), "--output", str(folder / "out"),
                 "--title", f"Title {HOSTILE}"]) == 0
    return folder / "out" / "report.html"
