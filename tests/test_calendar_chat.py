"""The example that writes conversations: its data can be read, and its check finds the answers in the format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jittor_lora.data.sources import load_data

SCRIPT = Path(__file__).parents[1] / "examples" / "calendar_chat.py"


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


def test_its_conversations_are_read_and_those_of_an_odd_and_an_even_seed_differ(tmp_path):
    sets = []
    for seed in (0, 1):
        run(tmp_path / f"{seed}.jsonl", "--count", 40, "--most", 4, "--seed", seed)
        sets.append(load_data(str(tmp_path / f"{seed}.jsonl")).conversations)
    assert all(len(found) == 40 for found in sets)
    assert max(len(conversation.turns) for conversation in sets[0]) == 1 + 2 * 4
    assert not {c.turns[1] for c in sets[0]} & {c.turns[1] for c in sets[1]}


def test_its_check_counts_answers_in_the_format(tmp_path):
    good = {"what": "lunch", "day": "Monday", "time": "12:30", "place": "room 4", "status": "planned"}
    answers = [json.dumps(good), json.dumps(good, indent=1), json.dumps(good) + " And more.", "No.", "[]",
               json.dumps({**good, "extra": "x"}), json.dumps({**good, "time": 3}), ""]
    (tmp_path / "predictions.json").write_text(json.dumps(dict(enumerate(answers))))
    assert run("--check", tmp_path / "predictions.json").startswith("1 of 8 answers")
