from __future__ import annotations

from jittor_lora.data.sources import load_data
from jittor_lora.evaluation.scoring import score
from jittor_lora.evaluation.units import ENOUGH_ARTICLES, Units, sample_shown


def places(articles, paragraphs=2, questions=3):
    return [(f"article {a}", f"paragraph {a} {p}") for a in range(articles) for p in range(paragraphs)
            for _ in range(questions)]


def test_articles_if_there_are_enough_otherwise_paragraphs():
    many, few = Units.choose(places(ENOUGH_ARTICLES)), Units.choose(places(ENOUGH_ARTICLES - 1))
    assert (many.name, len(many)) == ("article", ENOUGH_ARTICLES)
    assert (few.name, len(few)) == ("paragraph", 2 * (ENOUGH_ARTICLES - 1))


def test_a_context_in_two_articles_is_two_paragraphs():
    assert len(Units.choose([("a", "same"), ("b", "same"), ("b", "same")])) == 2


def test_prompts_and_questions_of_unknown_origin_are_units_by_themselves():
    assert Units.choose([(), ()]) == Units("prompt", (0, 1))
    assert score({"a": ["x"], "b": ["x"]}, {}).units == Units("question", (0, 1))


def test_a_subset_keeps_the_units():
    units = Units("paragraph", ("a", "a", "b", "c"))
    assert units.part([1, 3]) == Units("paragraph", ("a", "c"))


def test_units_of_the_shipped_samples():
    for name, unit, count in (("sample-dev", "article", 16), ("e2e-dev", "prompt", 315)):
        data = load_data(name, "dev", "evaluation")
        for part in (data, data.subset(200, 42)):
            units = score(part.references(), {}, part.places()).units
            assert units.name == unit
            assert len(units) == (count if unit == "article" else len(part.references()))


def test_how_a_sample_is_described():
    assert sample_shown(1, "question", 1) == "1 question"
    assert sample_shown(3905, "article", 16) == "3,905 questions of 16 articles"
    assert sample_shown(5, "paragraph", 1) == "5 questions of 1 paragraph"
    assert sample_shown(315, "prompt", 315) == "315 prompts"
