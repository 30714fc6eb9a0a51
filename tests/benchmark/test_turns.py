"""Contenders take turns: order, warm-ups, checks, failures."""

from __future__ import annotations

import pytest

from jittor_lora.benchmark import turns
from jittor_lora.benchmark.process import WorkerError
from jittor_lora.benchmark.turns import Contender


class Scripted:
    """In place of a worker: records its requests, and fails where its options say so."""

    asked: list[tuple[str, str]]

    def __init__(self, module, options, log, extra):
        self.name, self.fails_at = options["name"], options.get("fails_at")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asked.append((self.name, "end"))

    def ask(self, what, **arguments):
        self.asked.append((self.name, what))
        if self.fails_at == (what, self.asked.count((self.name, what))):
            raise WorkerError("no memory")
        return {"run": {"seconds": 1.0, "cpu_seconds": 1.0, "peak_mib": 1.0, "rss_mib": 1.0},
                "check": {"value": {"loss": 2.0}}}.get(what, {})


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(Scripted, "asked", [], raising=False)
    monkeypatch.setattr(turns, "Worker", Scripted)
    return Scripted.asked


def take(*contenders, warmups=1, repeats=3):
    return turns.take_turns(contenders, {}, "step", {}, warmups, repeats, None, lambda text: None)


def contender(name, **options):
    return Contender(name, "ours", {"name": name, **options})


def test_rounds_change_direction_and_warm_ups_do_not_count(asked):
    a, b = take(contender("a"), contender("b"))
    assert [name for name, what in asked if what == "run"] == list("abbaabba")
    assert [len(a["warmups"]), len(a["runs"]), len(b["runs"])] == [1, 3, 3]
    assert asked.count(("a", "check")) == 1 and asked.index(("a", "check")) == asked.index(("a", "run")) + 1
    assert a["check"] == {"loss": 2.0}


@pytest.mark.parametrize("fails_at, runs", [(("start", 1), 0), (("prepare", 1), 0), (("run", 1), 0), (("run", 3), 1)])
def test_a_failed_contender_is_dropped_and_the_others_continue(asked, fails_at, runs):
    a, b = take(contender("a", fails_at=fails_at), contender("b"))
    assert a["error"] == "no memory" and len(a["runs"]) == runs
    assert "error" not in b and len(b["runs"]) == 3
    assert ("a", "end") in asked and ("b", "end") in asked


def test_one_start_for_several_jobs(asked):
    with turns.Race([contender("a"), contender("b", fails_at=("run", 2))], {}, None, lambda text: None) as race:
        first, second = race.run("step", {}, 0, 1), race.run("squad", {}, 0, 2)
        third = race.run("decode", {}, 0, 1)
    assert asked.count(("a", "start")) == 1 and asked.count(("a", "prepare")) == 3
    assert ["error" in record for record in first] == [False, False]
    assert second[1]["error"] == third[1]["error"] == "no memory"
    assert [len(found[0]["runs"]) for found in (first, second, third)] == [1, 2, 1]


def test_memory_of_the_device_is_counted_for_whom_works(asked, monkeypatch):
    used = [10.0]
    ask = Scripted.ask

    def growing(self, what, **arguments):
        used[0] += {("a", "start"): 100.0, ("b", "start"): 40.0, ("b", "run"): 5.0}.get((self.name, what), 0.0)
        return ask(self, what, **arguments)

    monkeypatch.setattr(Scripted, "ask", growing)
    with turns.Race([contender("a"), contender("b")], {}, None, lambda text: None, lambda: used[0]) as race:
        a, b = race.run("step", {}, 1, 2)
    assert (a["device_mib"], b["device_mib"]) == (100.0, 40.0 + 3 * 5.0)
