from __future__ import annotations

from jittor_lora.data.jsonl import parse_jsonl
from jittor_lora.data.special_tokens import special_token_lines, texts_of
from jittor_lora.data.squad import Answer, Paragraph, Question, SquadData

SPECIAL = ["<s>", "<|im_start|>", "<|im_start|>x", "</s>"]


def test_which_tokens_and_how_many_examples():
    examples = [("<|im_start|>user <|im_start|>x", "a</s>"), ("plain", "b</s>"), ("plain", "c")]
    (line,) = special_token_lines(examples, SPECIAL, "text")
    assert line.startswith("2 of 3 examples spell out special tokens "
                           "(counts: </s> 2, <|im_start|> 1, <|im_start|>x 1).")
    assert "plain text" in line and "--special-tokens token" in line
    (line,) = special_token_lines(examples, SPECIAL, "token", "prompts")
    assert "2 of 3 prompts" in line and "They are read as the tokens" in line


def test_many_tokens_are_counted():
    special = [f"<{i}>" for i in range(9)]
    (line,) = special_token_lines([tuple(special)], special, "text")
    assert "1 of 1" in line and "and 4 more" in line


def test_texts_without_special_tokens_give_no_line():
    assert special_token_lines([("a", "b")], SPECIAL, "text") == []
    assert special_token_lines([("<s>",)], [], "text") == []


def test_texts_of_examples():
    data = parse_jsonl('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "c"}', "f")
    assert list(texts_of(data)) == [("a", "b"), ("a", "c")]
    squad = SquadData("f", (Paragraph("t", "C", (Question("1", "Q", (Answer("A", 0), Answer("B", 1))),)),))
    assert list(texts_of(squad)) == [("C", "Q", "A", "B")]
