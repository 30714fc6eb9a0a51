from __future__ import annotations

from jittor_lora.data.examples import training_groups
from jittor_lora.data.groups import Branch, TokenGroup
from jittor_lora.data.report import BRACKETS, COLOURS, EpochSize, batch_lines, describe_data, length_table, printable
from jittor_lora.data.sources import load_data
from jittor_lora.data.stream import batches, build_stream
from jittor_lora.data.template import Template
from jittor_lora.formats.byte_level import gpt2_tokenizer
from jittor_lora.formats.tokenizer import Tokenizer

EOS = 50256
GPT2 = Tokenizer(gpt2_tokenizer(), {}, "GPT-2's", EOS)


def group(prefix, *examples):
    branches = [Branch(f"q{i}", GPT2.encode(p), GPT2.encode(c) + [EOS]) for i, (p, c) in enumerate(examples)]
    return TokenGroup(GPT2.encode(prefix) if prefix else [], branches)


def test_scored_tokens_are_between_brackets():
    lines = list(batch_lines([group("It is", (" what?\nA:", " here now"), (" it", " a"))], GPT2, 0.0, BRACKETS))
    assert lines == [
        "2 examples, 1 groups: 11 rows, 5 labels, weight 5",
        "--- prefix, 2 tokens",
        "It is",
        "--- q0, from position 2",
        " what?\nA:[[ here]][[ now]][[<|endoftext|>]]",
        "--- q1, from position 2",
        " it[[ a]][[<|endoftext|>]]",
    ]


def test_weighted_prompts_are_marked_differently():
    lines = list(batch_lines([group("It is so", (" far", " here"))], GPT2, 0.5, BRACKETS))
    assert lines[2] == "It(( is))(( so))"
    assert lines[4] == "(( far))[[ here]][[<|endoftext|>]]"
    whole = list(batch_lines([group("It is so", (" far", " here"))], GPT2, 1.0, BRACKETS))
    assert whole[2] == "It[[ is]][[ so]]"


def test_tokens_that_make_up_one_character_are_shown_together():
    lines = list(batch_lines([group("", ("A:", "𝄞 x"))], GPT2, 0.0, BRACKETS))
    assert lines[2] == "A:[[𝄞]][[ x]][[<|endoftext|>]]"


def test_a_text_cannot_control_the_terminal():
    lines = list(batch_lines([group("", ("\x1b[2J:", "\x07\u202e x\r"))], GPT2, 0.0, BRACKETS))
    assert "\x1b" not in "".join(lines) and "\\x1b[2J:" in lines[2]
    assert printable("a\tb\nc\x9b\u202eü中 ") == "a\tb\nc\\x9b\\u202eü中 "
    assert COLOURS.full[0] in "".join(batch_lines([group("", ("a", "b"))], GPT2, 0.0, COLOURS))


def test_epoch_size_counts_the_tokens_of_the_streams():
    data = load_data("sample-train").subset(50, seed=0)
    groups, _ = training_groups(data, GPT2, Template(), 512)
    epoch = batches(groups, 8, seed=0, epoch=0)
    size = EpochSize.of(epoch, {EOS})
    shared, copied = ([build_stream(batch, share_prefixes=share) for batch in epoch] for share in (True, False))
    assert size.questions == 50 and size.steps == 7
    assert size.shared == sum(len(s.tokens) for s in shared)
    assert size.separate == sum(len(s.tokens) for s in copied) <= size.padded
    assert size.scored == sum(len(s.labels) for s in shared)
    assert size.closed == 50
    assert "end of text: scored in every example" in size.lines()
    assert "not scored" in "\n".join(EpochSize.of(epoch, ()).lines())


def test_length_table_has_quantiles_of_the_parts():
    groups = [group("a b c", (" d", " e")), group("a", (" d", " e f"))]
    rows = {line[:20].strip(): line[20:].split() for line in length_table(groups)}
    assert rows["prefix (shared)"][0] == "1" and rows["prefix (shared)"][-2:] == ["3", "2.0"]
    assert rows["whole example"][0] == "5" and rows["whole example"][-2:] == ["6", "5.5"]
    assert rows["completion"][0] == "2" and rows["completion"][-2] == "3"


def test_the_data_are_described(tmp_path):
    assert describe_data(load_data("sample-dev")) == "SQuAD, 16 articles, 825 paragraphs, 3,905 questions"
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "c"}\n')
    assert describe_data(load_data(str(path))) == "2 completions of 1 prompt"
