from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jittor_lora.data.encoding import TokenizerLike
from jittor_lora.data.examples import prompt_groups, training_groups
from jittor_lora.data.jsonl import Completion, Prompt, PromptData
from jittor_lora.data.sources import load_data
from jittor_lora.data.squad import Answer, Paragraph, Question, SquadData
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.byte_level import END_OF_TEXT, gpt2_tokenizer
from jittor_lora.formats.tokenizer import Tokenizer

EOS = 50256
TEMPLATE = Template()
GPT2 = Tokenizer(gpt2_tokenizer(), {}, "GPT-2's", EOS)


class Letters(TokenizerLike):
    """Every character is a token; `decode` joins them again."""

    eos_id = 1

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Greedy(Letters):
    """Doubled characters count once, so the tokens of words do not add up to those of their text."""

    def encode(self, text):
        ids, i = [], 0
        while i < len(text):
            pair = text[i : i + 2]
            ids.append(0x110000 + ord(pair[0]) if len(pair) == 2 and pair[0] == pair[1] else ord(pair[0]))
            i += 2 if ids[-1] >= 0x110000 else 1
        return ids

    def decode(self, ids):
        return "".join(chr(i - 0x110000) * 2 if i >= 0x110000 else chr(i) for i in ids)


def squad(context, *questions):
    made = tuple(Question(f"q{i}", text, (Answer(a, context.find(a)),)) for i, (text, a) in enumerate(questions))
    return SquadData("f.json", (Paragraph("T", context, made),))


def examples(groups):
    """id -> (prompt, completion), whole."""
    return {b.id: (g.prefix + b.prompt, b.completion) for g in groups for b in g.branches}


def test_questions_of_a_paragraph_share_its_prefix():
    groups, report = training_groups(squad("Rome is old.", ("What?", "Rome"), ("How?", "old")), GPT2, TEMPLATE, 100)
    (group,) = groups
    assert GPT2.decode(group.prefix) == "Context: Rome is old.\nQuestion:"
    assert [GPT2.decode(b.prompt) for b in group.branches] == [" What?\nAnswer:", " How?\nAnswer:"]
    assert [GPT2.decode(b.completion) for b in group.branches] == [" Rome" + END_OF_TEXT, " old" + END_OF_TEXT]
    assert all(b.completion[-1] == EOS for b in group.branches)
    assert (report.examples, report.kept, report.windowed, report.dropped) == (2, 2, [], {})


def test_generation_gets_the_same_prompts():
    data = load_data("sample-dev").subset(60, seed=0)
    trained, _ = training_groups(data, GPT2, TEMPLATE, 1024)
    asked, _ = prompt_groups(data, GPT2, TEMPLATE, 1024)
    asked = examples(asked)
    assert {name: prompt for name, (prompt, _) in examples(trained).items()} == {n: p for n, (p, _) in asked.items()}
    assert all(completion == [] for _, completion in asked.values())


def test_end_of_text_spelled_in_a_paragraph_is_text():
    groups, _ = training_groups(squad("a <|endoftext|> b", ("What?", "b")), GPT2, TEMPLATE, 100)
    assert EOS not in groups[0].prefix


WORDS = st.lists(st.text(st.sampled_from("ab中."), min_size=1, max_size=25), min_size=1, max_size=20)


@given(WORDS, st.data(), st.integers(40, 120), st.sampled_from([Letters(), Greedy()]))
def test_in_training_the_answer_stays_in_the_window(words, data, limit, tokenizer):
    context = " ".join(words)
    start = data.draw(st.integers(0, len(context) - 1))
    answer = context[start : data.draw(st.integers(start + 1, min(start + 20, len(context))))]
    assume(answer.strip())
    question = Question("q", "why", (Answer(answer, start),))
    paragraph = SquadData("f.json", (Paragraph("T", context, (question,)),))
    try:
        groups, report = training_groups(paragraph, tokenizer, TEMPLATE, limit)
    except UserError as error:
        assert "none of its 1 examples fits" in str(error)
        prefix, branch = TEMPLATE.prompt_pieces(answer, "why")
        # Dropped examples exceed the limit by more than the rest of the answer's words (at most 15 letters each side).
        assert sum(map(len, map(tokenizer.encode, (prefix, branch, answer)))) + 2 + 32 > limit
        return
    prompt, completion = examples(groups)["q"]
    assert completion == tokenizer.encode(" " + answer.strip()) + [1]
    assert len(prompt) + len(completion) <= limit
    text = tokenizer.decode(prompt)
    kept = text[len("Context: ") : text.index("\nQuestion:")]
    assert answer in kept
    assert kept in context
    assert bool(report.windowed) == (kept != context)
    assert report.longest[0] == sum(len(tokenizer.encode(t)) for t in TEMPLATE.prompt_pieces(context, "why")) + len(
        completion
    )


def test_windows_stay_at_the_given_answer_position():
    years = (f"it was in year {i} ." for i in range(60))
    context = " ".join(years).replace("year 7 ", "Rome ").replace("year 50", "Rome")
    start = context.rindex("Rome")
    data = SquadData("f", (Paragraph("T", context, (Question("q", "Where?", (Answer("Rome", start),)),)),))
    groups, report = training_groups(data, GPT2, TEMPLATE, 64)
    text = GPT2.decode(examples(groups)["q"][0])
    assert "year 49 . it was in Rome . it was in year 51" in text
    assert report.windowed == ["q"]


def test_real_windows_fill_the_limit():
    data = load_data("sample-train").subset(200, seed=1)
    groups, report = training_groups(data, GPT2, TEMPLATE, 128)
    lengths = [len(p) + len(c) for n, (p, c) in examples(groups).items() if n in set(report.windowed)]
    assert len(lengths) > 100
    assert max(lengths) <= 128
    # Whole words are kept: the free space is less than the longest of them.
    assert sum(lengths) / len(lengths) > 125


def test_in_evaluation_the_context_is_cut_from_its_end():
    context = " ".join(f"w{i}" for i in range(50))
    groups, report = prompt_groups(squad(context, ("short?", "w1"), ("a longer one?", "w1")), Letters(), TEMPLATE, 120)
    assert len(groups) == 2
    for prompt, _ in examples(groups).values():
        text = Letters().decode(prompt)
        kept = text[len("Context: ") : text.index("\nQuestion:")]
        assert context.startswith(kept)
        assert kept.split(" ") == context.split(" ")[: kept.count(" ") + 1]
        assert 115 < len(text) <= 120
    assert report.cut == ["q0", "q1"]


def test_questions_truncated_alike_share_their_prefix():
    context = " ".join(f"w{i}" for i in range(50))
    groups, _ = prompt_groups(squad(context, ("one?", "w1"), ("two?", "w1")), Letters(), TEMPLATE, 120)
    assert [len(g.branches) for g in groups] == [2]


def test_what_cannot_fit_is_dropped_with_its_reason():
    data = squad("Rome is old.", ("x" * 100, "Rome"), ("What?", "Rome"))
    groups, report = training_groups(data, Letters(), TEMPLATE, 60)
    assert list(examples(groups)) == ["q1"]
    assert report.dropped == {"q0": "the question with its answer alone is longer than the limit"}
    assert report.kept == 1
    assert "1 dropped: the question with its answer alone" in "\n".join(report.lines())
    _, report = prompt_groups(data, Letters(), TEMPLATE, 60)
    assert report.dropped == {"q0": "the question alone is longer than the limit"}
    with pytest.raises(UserError, match=r"f.json: none of its 2 examples fits into 20 tokens \(the longest has 1"):
        training_groups(data, Letters(), TEMPLATE, 20)


def test_without_a_shared_context_each_question_is_a_group():
    template = Template("{question}\n{context}\nA:")
    groups, report = training_groups(squad("a bb ccc", ("one?", "a"), ("two?", "a")), Letters(), template, 12)
    assert [g.prefix for g in groups] == [[], []]
    assert report.windowed == ["q0", "q1"]


def prompts(*pairs):
    return PromptData(
        "f.jsonl",
        tuple(
            Prompt(f"{i}.0", text, tuple(Completion(f"{i}.{j}", c) for j, c in enumerate(completions)))
            for i, (text, completions) in enumerate(pairs)
        ),
    )


def test_rows_with_the_same_prompt_are_branches():
    groups, _ = training_groups(prompts(("ab", [" x", " yy"]), ("c", ["d"])), Letters(), TEMPLATE, 50)
    found = [(Letters().decode(g.prefix), [(b.prompt, b.completion) for b in g.branches]) for g in groups]
    assert found == [
        ("a", [([98], [32, 120, 1]), ([98], [32, 121, 121, 1])]),
        ("", [([99], [100, 1])]),
    ]
    asked, report = prompt_groups(prompts(("ab", [" x", " yy"]), ("c", ["d"])), Letters(), TEMPLATE, 50)
    assert examples(asked) == {"0.0": ([97, 98], []), "1.0": ([99], [])}
    assert report.examples == 2


def test_a_long_plain_prompt_keeps_its_end():
    data = prompts(("abcdefgh", ["x", "yyyy"]), ("k", ["z" * 20, "z" * 8]))
    groups, report = training_groups(data, Letters(), TEMPLATE, 10)
    assert examples(groups) == {
        "0.0": ([ord(c) for c in "abcdefgh"], [120, 1]),
        "0.1": ([ord(c) for c in "defgh"], [121] * 4 + [1]),
        "1.1": ([ord("k")], [122] * 8 + [1]),
    }
    assert report.cut == ["0.1"]
    assert report.dropped == {"1.0": "the completion alone is longer than the limit"}
    asked, report = prompt_groups(data, Letters(), TEMPLATE, 3)
    assert examples(asked)["0.0"] == ([ord(c) for c in "fgh"], [])
    assert report.cut == ["0.0"]


def test_a_prompt_without_tokens_is_dropped():
    class Deaf(Letters):
        def encode(self, text):
            return [] if text == "?" else super().encode(text)

    groups, report = training_groups(prompts(("?", ["x"]), ("a", ["x"])), Deaf(), TEMPLATE, 10)
    assert list(examples(groups)) == ["1.0"]
    assert report.dropped == {"0.0": "the prompt has no tokens"}
