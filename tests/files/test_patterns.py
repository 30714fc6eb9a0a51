from __future__ import annotations

import re
import time

import pytest

from jittor_lora.files.patterns import wrong_amount, wrong_pattern

KINDS = ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = [f"model.layers.{i}.{kind}" for i in range(48) for kind in KINDS]

IN_USE = [
    r"c_attn", r"mlp\.c_proj", r"all-linear", r".*\.(q_proj|v_proj)", r"^(?!.*visual).*(?:q_proj|k_proj).*",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$", r"model\.layers\.(1\d|2[0-3])\..*_proj",
    r"h\.[0-9]{1,2}\.attn\..*",
    r"(?:.*?(?:vision|language).*?(?:attn|mlp).*?(?:q_proj|k_proj).*?)|(?:model\.layers\.[\d]{1,}\.(?:self_attn|mlp)\..*)",
]
HOSTILE = [
    r"(.+)+!", r"(a*)*b", r"(a|a)*b", r"(a|ab)*c", r"(\w+\.?)+!", r"([a-z]+)*x", r"(x+x+)+y", r"(.{1,30}){1,30}x",
    r"(a?){25}a{25}", r"(?:a|aa){2,40}b", r"((a{1,9}){1,9}){1,9}b", r".*.*.*.*.*.*.*.*x", r"\w*\d*\w*\d*\w*\d*\w*x",
    "a?" * 28 + "a" * 28, "(a|aa)" * 60 + "b",
    r"(?=(a+)+b)", r"(?P<n>a*)*(?P=n)", "a{4294967296}", "(" * 5000 + ")" * 5000, "(", "[", "*", r"(?P<n", "a" * 20_000,
]


@pytest.mark.parametrize("pattern", IN_USE)
def test_ordinary_patterns_are_accepted_and_fast(pattern):
    assert wrong_pattern(pattern) is None
    began = time.perf_counter()
    for name in NAMES:
        re.fullmatch(pattern, name)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("pattern", HOSTILE, ids=[pattern[:20] for pattern in HOSTILE])
def test_patterns_that_may_take_forever_are_refused(pattern):
    assert "regular expression" in wrong_pattern(pattern)


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_patterns_that_are_not_text(value):
    assert wrong_pattern(value) == "expected a regular expression"


def test_nested_groups_do_not_overflow():
    for depth in range(20, 1200, 20):
        found = wrong_pattern("(" * depth + "a" + ")" * depth)
        assert found is None or found.startswith("not a regular expression (")


def test_slow_patterns_on_many_long_names():
    assert wrong_amount([r".*\.(q_proj|v_proj)", r"h\.(\d+)\.attn", "c_attn"], NAMES, at_parts=True) is None
    assert wrong_amount([r".*.*.*.*x"], NAMES, at_parts=False) is None
    assert "at most 300 million steps to match, found 1,441 million" in wrong_amount(
        [r".*.*.*.*x"], ["a." * 120] * 10, at_parts=False)
    assert wrong_amount([r".*x"], ["a" * 9_999] * 30_000, at_parts=False) is None  # 10,000 matching steps each
    assert "found 301 million" in wrong_amount([r".*x"], ["a" * 9_999] * 30_001, at_parts=False)
    assert "found more than 10^15" in wrong_amount([r".*.*.*.*x"], ["a." * 12000] * 10, at_parts=False)
    assert wrong_amount(["x" * 200] * 2000, ["a." * 120] * 100, at_parts=True) is None
