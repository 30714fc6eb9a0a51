"""Answers to a data set are independent of the rest of the batch."""

from __future__ import annotations

import pytest

import small_run
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import Template
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.session import load
from jittor_lora.tasks.answering import answer
from jittor_lora.tasks.questions import Questions


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A generator, and the questions of seven contexts."""
    folder = tmp_path_factory.mktemp("evaluate")
    session = load(str(small_run.make_base(folder / "base")))
    data = load_data(str(small_run.make_squad(folder / "dev.json", 7)), "dev", "evaluation")
    return Generator(session.model, session.tokenizer), Questions.of(data, session.tokenizer, Template(), 256, 12)


def test_answers_are_those_to_each_question_alone(asked):
    generator, questions = asked
    decoding = Decoding(12, stop="\n")
    alone = {branch.id: generator.continue_groups([(group.prefix, [branch.prompt])], decoding, trim=True)[0].strip()
             for group in questions.groups for branch in group.branches}
    assert len(alone) == 14 and len(set(alone.values())) > 3
    for rows in (1, 3, 64):
        assert answer(generator, questions, rows).texts == alone


def test_progress_counts_the_questions(asked, capsys):
    generator, questions = asked
    answer(generator, questions, progress="base")
    assert "base: 14 of 14 questions" in capsys.readouterr().err
