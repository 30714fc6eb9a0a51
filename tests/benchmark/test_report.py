"""From measurements to tables."""

from __future__ import annotations

import json

import pytest

from jittor_lora.benchmark import report
from jittor_lora.errors import UserError
from measurements import cells, record, result
from programs import load_program


def test_medians_rates_and_ratios():
    made = report.comparison([result("step", [record("ours", [1.0, 3.0, 2.0], ours=True), record("peer", [8, 6, 7])])])
    ours, peer = cells(made)
    assert (ours["tool"], ours["median s"], ours["min s"], ours["CPU s"]) == ("**ours**", "2", "1", "4")
    assert (ours["tokens per second"], ours["time / first"], ours["peak MiB"]) == ("30", "1.00", "300")
    assert (peer["median s"], peer["time / first"]) == ("7", "3.50")


def test_gains_over_the_line_above_and_the_first():
    lines = [record("stock", [8.0], check={"loss": 2.0}), record("+ a", [4.0], check={"loss": 2.0}),
             record("+ b", [], error="broken"),
             {**record("+ bf16", [1.0], check={"loss": 2.01}), "options": {"precision": "bf16"}}]
    rows = cells(report.additive([result("additive", lines)]))
    assert [row["faster than above"] for row in rows] == ["1.00", "2.00", report.MISSING, "4.00"]
    assert [row["than the first"] for row in rows] == ["1.00", "2.00", report.MISSING, "8.00"]
    assert rows[2]["same result"] == "broken" and rows[3]["same result"] == "loss ±5e-03"


def test_failures_are_named():
    peer = record("peer", [], error="no | memory")
    made = report.comparison([result("step", [record("ours", [1.0], ours=True), peer])])
    assert cells(made)[1]["median s"] == report.MISSING
    assert cells(made)[1]["same result"] == "no / memory"


@pytest.mark.parametrize("precision, ours, theirs, shown", [
    ("fp32", {"loss": 2.0}, {"loss": 2.00001}, "loss ±5e-06"),
    ("fp32", {"loss": 2.0}, {"loss": 2.01}, "loss ±5e-03 (DIFFERS)"),
    ("bf16", {"loss": 2.0}, {"loss": 2.01}, "loss ±5e-03"),
    ("fp32", {"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 5]]}, "75 % of tokens"),
    ("fp32", {"answers": ["a", "b"]}, {"answers": ["a", "b"]}, "100 % of answers"),
    ("fp32", None, {"loss": 1.0}, report.MISSING),
])
def test_agreement(precision, ours, theirs, shown):
    assert report.agreement(precision, ours, theirs) == shown


def test_memory_after_an_early_step_and_at_the_end():
    [row] = cells(report.memory([result("memory", [record("ours", [1.0], check=[float(i) for i in range(1, 101)])])]))
    assert (row["steps"], row["MiB after step 50"], row["MiB at the end"]) == ("100", "50", "100")


def test_runs_of_different_parts_are_one_report(tmp_path):
    def file(name, part, system="this"):
        content = {"base": "random", "system": system, "settings": {}, "choices": {name: 1}, "results": [
            result(part, [record("ours", [1.0])])]}
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    one, other = file("one", "step"), file("other", "gemm")
    both = report.read(one, other)
    assert [r["part"] for r in both["results"]] == ["step", "gemm"] and set(both["choices"]) == {"one", "other"}
    with pytest.raises(UserError, match="step: expected once"):
        report.read(one, other, file("again", "step"))
    with pytest.raises(UserError, match="system: expected this.*found that"):
        report.read(one, file("elsewhere", "squad", system="that"))


def test_the_share_of_other_processes():
    one = record("ours", [3.0, 1.0])
    for run, others in zip(one["runs"], (1.0, 0.6)):
        run["others_cpu_seconds"] = others
    assert report.disturbance({"system": {"cores": 2}, "results": [result("step", [one])]}) == pytest.approx(0.2)
    assert report.disturbance({"system": {"cores": 2}, "results": []}) == 0.0


def test_share_of_the_peak():
    made = report.roofline({"results": [
        result("gemm", [record("ours", [2.0, 1.0]), record("torch", [0.5])], units=10.0),
        result("gemm", [record("ours", [1.0])], units=10.0),  # the fastest of all products counts
        result("step", [record("ours", [3.0])], gflop=30.0),
        result("step", [record("ours", [3.0])], "bf16", gflop=30.0),  # no product was measured in bf16
    ]})
    [row] = cells(made)
    assert (row["GFLOP/s"], row["peak GFLOP/s"], row["share"]) == ("10", "20", "50 %")


def test_adapters_are_compared_with_the_first():
    lines = [record("LoRA", [2.0, 2.0, 2.0], 1000), record("DoRA", [3.0, 3.0, 3.0], 1200),
             record("x", [], error="broken")]
    first, second, third = cells(report.adapters([result("adapters", lines)]))
    assert (first["trained values"], first["time / first"], first["peak / first"]) == ("1,000", "1.00", "1.00")
    assert (second["trained values"], second["time / first"], second["peak MiB"]) == ("1,200", "1.50", "300")
    assert third["peak / first"] == "broken"


PAGE = "a\n<!-- bench: step -->\nold\n<!-- /bench -->\nb\n<!-- bench: step avx2 -->\n<!-- /bench -->\n"


@pytest.mark.parametrize("machine, expected", [
    (None, PAGE.replace("\nold\n", "\n\nnew\n\n")),
    ("avx2", PAGE.replace("avx2 -->\n", "avx2 -->\n\nnew\n\n")),
    ("neon", PAGE)])
def test_only_the_marks_of_the_machine_are_filled(machine, expected):
    filled = load_program("benchmarks/report.py").filled
    assert filled(PAGE, {"step": "new"}, machine) == (expected, [])
    assert filled(PAGE, {}, "avx2") == (PAGE, ["step"])
