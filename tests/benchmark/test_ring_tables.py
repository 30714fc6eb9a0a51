"""Tables of the parts that compare storage formats."""

from __future__ import annotations

from jittor_lora.benchmark import report, ring_tables
from jittor_lora.benchmark.report import tables
from measurements import cells, record, result


def entry(name, kind, seconds, check=None, module=None, **more):
    return {**record(name, seconds, check, ours=name == "ours", **more), "format": kind, "module": module or name}


def decoding(**more):
    return result("text", [
        entry("ours", "f32", [2.0, 4.0, 3.0], {"tokens": [[1, 2]]}),
        entry("transformers", "f32", [9.0], {"tokens": [[1, 2]]}, "peers"),
        entry("ours", "q8_0", [1.0, 1.0, 2.0], {"tokens": [[1, 2]]}),
        entry("llama.cpp", "q8_0", [1.5, 3.0, 0.5], {"tokens": [[1, 3]]}),
        entry("mlx-lm", "q8_0", [], error="no | memory")], workload="one text", **more)


def test_ratios_are_to_ours_in_the_same_format_and_to_transformers_in_float32():
    ours, transformers, stored, llama, mlx = cells(ring_tables.comparison([decoding()]))
    assert (ours["tool"], ours["time / ours"], ours["times as fast as transformers"]) == ("**ours**", "1.00", "3.00")
    assert (transformers["time / ours"], transformers["same result"]) == ("3.00", "100 % of tokens")
    assert (stored["format"], stored["time / ours"]) == ("q8_0", "1.00")
    assert stored["times as fast as transformers"] == "9.00"
    assert (llama["time / ours"], llama["minimum / ours"], llama["same result"]) == ("1.50", "0.50", "50 % of tokens")
    assert llama["tokens per second"] == "40" and mlx["same result"] == "no / memory"


def test_without_transformers_there_is_no_such_column():
    one = result("context", [entry("ours", "f32", [2.0]), entry("llama.cpp", "f32", [3.0])], workload="w")
    rows = cells(ring_tables.comparison([one]))
    assert not any("times as fast" in name for name in rows[0]) and rows[1]["time / ours"] == "1.50"


def test_share_of_the_memory_bandwidth():
    works = [result("bandwidth", [entry("memory", None, [2.0, 1.0])], units=10.0),
             decoding(read_per_token={"f32": 400_000_000, "q8_0": 100_000_000})]  # 60 tokens
    rows = cells(ring_tables.bandwidth({"results": works}))
    assert [(row["format"], row["tool"], row["share"]) for row in rows] == [
        ("f32", "**ours**", "80 %"), ("f32", "transformers", "27 %"), ("q8_0", "**ours**", "60 %"),
        ("q8_0", "llama.cpp", "40 %")]
    assert ring_tables.bandwidth({"results": works[:1]}) == ring_tables.bandwidth({"results": works[1:]}) == ""


def test_differences_of_logits_are_shown_and_all_tables_are_made():
    logits = result("logits", [entry("float32", "f32", [1.0]),
                               entry("ours", "f32", [1.0], {"max": 0.0, "mean": 0.0, "same": 1.0}),
                               entry("llama.cpp", "f32", [1.0], {"max": 0.25, "mean": 0.0123, "same": 0.98}),
                               entry("mlx-lm", "f32", [], error="broken")])
    ours, llama, mlx = cells(ring_tables.logits([logits]))
    assert [ours[name] for name in list(ours)[2:]] == ["0", "0", "100 %"]
    assert [llama[name] for name in list(llama)[2:]] == ["2.5e-01", "1.2e-02", "98 %"]
    assert mlx["same likeliest token"] == "broken"
    training = result("training", [entry("ours", "f32", [2.0], {"loss": 2.0})])
    made = tables({"results": [decoding(read_per_token={}), training, logits, {**decoding(), "part": "context"}]})
    assert list(made) == ["ring", "text", "context", "training", "logits"]
    none = report.MISSING
    assert [list(row.values()) for row in cells(made["ring"])][:3] == [
        ["one text", "transformers", "3.00 (4.50)", none], ["one text", "llama.cpp", none, "1.50 (0.50)"],
        ["one text", "mlx-lm", none, none]]
