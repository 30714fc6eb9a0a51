"""Several reference answers to a question: weighted branches of the shared prefix, or one drawn per epoch."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from data.test_stream import IDS, same, scored
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.encoding import TokenizerLike
from jittor_lora.data.examples import training_groups
from jittor_lora.data.groups import Branch, TokenGroup, drawn, separate
from jittor_lora.data.jsonl import Completion, Prompt, PromptData
from jittor_lora.data.squad import Answer, Paragraph, Question, SquadData
from jittor_lora.data.stream import batches, build_stream, micro_batches, rows
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.tasks.fingerprints import identity_of_data, is_identity_of_data

CONTEXT = "The old city of Rome, the capital, is in Italy."


class Letters(TokenizerLike):
    """One token per character."""

    eos_id = 0

    def encode(self, text):
        return [ord(character) for character in text]


def question(name, *texts):
    return Question(name, "Which city?", tuple(Answer(text, CONTEXT.find(text)) for text in texts))


def data_of(*questions, context=CONTEXT):
    return SquadData("dev.json", (Paragraph("Rome", context, questions),))


DATA = data_of(question("a", "Rome", "city of Rome", "Rome", "old city of Rome"), question("b", "Italy", "Italy"))


def learnt(data=DATA, limit=200):
    groups, report = training_groups(data, Letters(), Template(), limit, all_references=True)
    found = {branch.id: {"".join(map(chr, one.completion[:-1])).strip(): one.weight for one in branch.all}
             for group in groups for branch in group.branches}
    return groups, report, found


@st.composite
def several(draw):
    """Groups whose examples have one to four completions, of weights that add up to 1."""
    groups = []
    for g in range(draw(st.integers(1, 4))):
        prefix = draw(st.lists(IDS, max_size=5))
        branches = []
        for b in range(draw(st.integers(1, 4))):
            counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
            first, *others = [
                Branch(f"{g}.{b}", draw(st.lists(IDS, min_size=0 if prefix else 1, max_size=4)),
                       draw(st.lists(IDS, min_size=1, max_size=4)), weight=count / sum(counts)) for count in counts]
            branches.append(dataclasses.replace(first, others=tuple(others)))
        groups.append(TokenGroup(prefix, branches))
    return groups


def test_each_distinct_answer_has_its_share():
    groups, report, found = learnt()
    assert found == {"a": {"Rome": 0.5, "city of Rome": 0.25, "old city of Rome": 0.25}, "b": {"Italy": 1.0}}
    assert report.several == 1 and "1 questions have several reference answers to learn" in report.lines()
    plain, report = training_groups(DATA, Letters(), Template(), 200)
    assert [branch.completion for branch in plain[0].branches] == [branch.completion for branch in groups[0].branches]
    assert not any(branch.others for branch in plain[0].branches) and not report.several
    assert [branch.weight for branch in plain[0].branches] == [1.0, 1.0]


def test_answers_that_are_not_in_the_context_count_only_if_none_is():
    assert question("q", "Rome", "Berlin", "city").distinct_answers() == [
        (Answer("Rome", CONTEXT.find("Rome")), 0.5), (Answer("city", CONTEXT.find("city")), 0.5)]
    assert question("q", "Berlin", "Paris").distinct_answers() == [
        (Answer("Berlin", -1), 0.5), (Answer("Paris", -1), 0.5)]
    assert question("q").distinct_answers() == [(Answer("", -1), 1.0)]


def test_a_context_that_is_cut_leaves_out_what_is_not_in_the_rest():
    context = "Rome. " + "Far away and long ago, nothing happened here. " * 5 + "It was Paris, then Paris, in France."
    asked = Question("q", "Where?", tuple(Answer(text, context.find(text)) for text in ("Paris", "Rome", "in France")))
    _, report, found = learnt(data_of(asked, context=context), 100)
    assert report.windowed == ["q"] and found == {"q": {"Paris": 0.5, "in France": 0.5}}
    long = question("q", "Rome", CONTEXT)
    whole = len("".join(Template().prompt_pieces(CONTEXT, long.text))) + len(" Rome") + 1
    _, report, found = learnt(data_of(long), whole)
    assert found == {"q": {"Rome": 1.0}} and not report.windowed  # with the other answer it would not fit


@pytest.mark.parametrize("data", [PromptData("rows.jsonl", (Prompt("p", "a", (Completion("p", "b"),)),)),
                                  ConversationData("talk.jsonl", ())])
def test_data_without_reference_answers_are_refused(data):
    with pytest.raises(UserError, match=r"(rows|talk)\.jsonl: references: expected most-frequent"):
        training_groups(data, Letters(), Template(), 50, all_references=True)


@given(several(), st.sampled_from([0.0, 0.25, 1.0]))
def test_they_score_what_separate_weighted_examples_score(groups, weight):
    stream, apart = build_stream(groups, weight), build_stream(tiny.one_by_one(groups), weight)
    same(scored(stream), scored(apart))
    assert stream.total_weight == pytest.approx(apart.total_weight)
    assert stream.ids == [branch.id for group in groups for branch in group.branches]
    assert len(stream.tokens) == sum(rows(group.prefix, group.branches) for group in groups)
    same(scored(stream), scored(build_stream(groups, weight, share_prefixes=False)))
    assert len(separate(groups)) == len(stream.ids)


@given(several(), st.integers(1, 30), st.integers(1, 6), st.sampled_from([0.0, 0.5]))
def test_the_answers_to_a_question_stay_together(groups, budget, size, weight):
    whole, parts = build_stream(groups, weight), micro_batches(groups, budget, weight)
    assert sorted(name for part in parts for name in part.ids) == sorted(whole.ids)
    assert sum(part.total_weight for part in parts) == pytest.approx(whole.total_weight)
    assert all(len(part.tokens) <= budget for part in parts if len(part.ids) > 1)
    plain = [group.with_branches([dataclasses.replace(b, weight=1.0, others=()) for b in group.branches])
             for group in groups]
    names = [[[b.id for group in batch for b in group.branches] for batch in batches(each, size, 3, 1)]
             for each in (groups, plain)]
    assert names[0] == names[1]


@given(several(), st.integers(0, 2**63), st.integers(0, 9))
def test_an_epoch_draws_one_answer_of_each_question(groups, seed, epoch):
    found = drawn(groups, seed, epoch)
    assert found == drawn(groups, seed, epoch) and len(found) == len(groups)
    for group, before in zip(found, groups):
        assert group.prefix == before.prefix
        for branch, given_branch in zip(group.branches, before.branches):
            assert branch.weight == 1.0 and branch.others == ()
            assert branch.id == given_branch.id
            assert (branch.prompt, branch.completion) in [(one.prompt, one.completion) for one in given_branch.all]


def test_draws_follow_the_shares():
    branches = [Branch(str(i), [1], [2], weight=0.75, others=(Branch(str(i), [1], [3], weight=0.25),))
                for i in range(2000)]
    epochs = [[branch.completion[0] for branch in drawn([TokenGroup([5], branches)], 1, epoch)[0].branches]
              for epoch in range(3)]
    assert all(1420 < epoch.count(2) < 1580 for epoch in epochs)  # 4 standard deviations around 1500
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_fingerprint_knows_answers_and_weights():
    one = Branch("q", [1], [2], weight=0.5, others=(Branch("q", [1], [3], weight=0.5),))
    variants = [Branch("q", [1], [2]), one, dataclasses.replace(one, weight=0.25),
                dataclasses.replace(one, others=(dataclasses.replace(one.others[0], completion=[4]),))]
    found = [identity_of_data([TokenGroup([5], [branch])]) for branch in variants]
    assert len(set(found)) == len(variants)
    assert is_identity_of_data(found[1], [TokenGroup([5], [one])])
