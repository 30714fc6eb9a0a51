from __future__ import annotations

import json

import pytest

from jittor_lora.data.jsonl import Completion, Prompt, PromptData
from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import holm
from jittor_lora.evaluation.compare import display_width
from jittor_lora.evaluation.scoring import score
from jittor_lora.evaluation.standings import standings, standings_json, standings_table
from jittor_lora.evaluation.systems import System, named_folders, read_system, run_of, run_settings

REFERENCES = {f"q{index}": ["x y"] for index in range(100)}


def prompts(**answers):
    return PromptData("data", tuple(Prompt(name, name, (Completion(name, text),)) for name, text in answers.items()))


def system(name, right):
    return System(name, score(REFERENCES, {f"q{index}": "x y" if right(index) else "z" for index in range(100)}))


SYSTEMS = [system("base", lambda i: i < 20), system("r8", lambda i: 10 <= i < 90), system("same", lambda i: i < 20)]


def test_each_is_compared_with_the_first():
    base, r8, same = standings(SYSTEMS)
    assert (base.metrics.exact_match, base.exact_match, base.f1) == (20, None, None)
    assert (r8.exact_match.mean, r8.f1.mean, r8.gained, r8.lost) == (60, 60, 70, 10)
    assert r8.exact_match.low < 60 < r8.exact_match.high
    assert r8.exact_match.p_value == pytest.approx(2 / 10_001)  # the lowest possible, doubled for two systems
    assert (same.f1.mean, same.f1.p_value, same.gained, same.lost) == (0, 1, 0, 0)
    assert json.loads(json.dumps(standings_json([base, r8, same])))[1]["gained"] == 70


def test_the_table_names_all_systems_and_is_aligned():
    lines = standings_table(standings(SYSTEMS)).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["EM", "base", "r8", "same"]
    assert "+60.00" in lines[2] and "< 0.001" in lines[2] and lines[2].split()[-2:] == ["70", "10"]
    assert len({display_width(line) for line in (lines[0], *lines[2:4])}) == 1
    assert lines[4].startswith("100 questions")


def test_equal_names_and_other_questions_are_refused():
    with pytest.raises(UserError, match="several systems are named base"):
        standings([SYSTEMS[0], SYSTEMS[0]])
    with pytest.raises(UserError, match="different questions"):
        standings([SYSTEMS[0], System("other", score({"o": ["x"]}, {}))])


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.fixture
def run(tmp_path):
    """A run folder with two evaluations."""
    folder = tmp_path / "my run"
    for name in ("adapter", "base"):
        (folder / "evaluation" / name).mkdir(parents=True)
        (folder / "evaluation" / name / "predictions.json").write_text('{"q1": "x y"}')
    (folder / "evaluation" / "base" / "metrics.json").write_text('{"answer_perplexity": 2.5}')
    (folder / "metrics.jsonl").write_text("")
    (folder / "config.yaml").write_text("learning_rate: 1e-3\ndev: null\n")
    return folder


def test_resolving_a_name(run, tmp_path):
    base, adapter = (run / "evaluation" / name / "predictions.json" for name in ("base", "adapter"))
    assert named_folders(str(run)) == [("my run base", base), ("my run adapter", adapter)]
    assert named_folders(f"r={run}") == [("r base", base), ("r adapter", adapter)]
    assert named_folders(str(base.parent)) == [("base", base)]
    assert named_folders(f"B={base}") == [("B", base)]
    assert named_folders(str(base)) == [("base", base)]
    odd = tmp_path / "a=b.json"
    odd.write_text("{}")
    assert named_folders(str(odd)) == [("a=b", odd)]
    assert named_folders(f"x=y={odd}") == [("x=y", odd)]


@pytest.mark.parametrize("argument", ["nowhere", "name=nowhere", "."])
def test_nothing_found_is_reported(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected a prediction file"):
        named_folders(argument)


def test_a_system_knows_its_run_and_perplexity(run):
    found = read_system("b", run / "evaluation" / "base" / "predictions.json", prompts(q1="x y", q2="z"))
    assert (found.run, found.perplexity, found.score.exact_match, found.score.missing) == (run, 2.5, 50, 1)
    assert found.settings["training: learning_rate"] == "1e-3"
    assert "training: dev" not in found.settings
    assert run_of(run.parent) is None and run_settings(None) == {}


def test_answers_to_other_questions_are_refused(run):
    with pytest.raises(UserError, match="answers none of the 1 questions"):
        read_system("b", run / "evaluation" / "base" / "predictions.json", prompts(other="x"))
