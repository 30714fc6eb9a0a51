"""/v1/answers: the answers of `generate`, and spans of the context."""

from __future__ import annotations

import math

import pytest

from jittor_lora.inference.asking import Question, answers
from jittor_lora.inference.extraction import Candidates, most_expected
from jittor_lora.inference.generator import Decoding
from jittor_lora.inference.sampling import Sampling
from serving import served
from serving.served import CONTEXT, QUESTIONS

PATH = "/v1/answers"


def alone(server, model, function):
    """What a function of the model returns where nothing else is computed."""
    one = server.service.models[model]

    def compute():
        with server.service.session.adapters.only(*([one.adapter] if one.adapter else [])):
            return function(one)

    return server.computed(compute)


def expected(server, model, decoding, context=CONTEXT):
    asked = [Question(context, question) for question in QUESTIONS]
    found = alone(server, model, lambda one: answers(one.generator, asked, decoding))
    return [texts[0] for texts in found]


def spans(server, model, context=CONTEXT):
    return alone(server, model, lambda one: one.extractor.answer(context, QUESTIONS))


def test_generated_answers_of_several_models(server):
    answer = server.answer(PATH, context=CONTEXT, questions=QUESTIONS, models=["two", served.BASE, "one"],
                           max_tokens=20)
    assert [(one["question"], one["model"]) for one in answer["answers"]] == [
        (question, model) for question in range(3) for model in ("two", served.BASE, "one")]
    for number, model in enumerate(("two", served.BASE, "one")):
        assert [one["text"] for one in answer["answers"][number::3]] == expected(server, model, Decoding(20, stop="\n"))
    assert answer["object"] == "answers" and answer["seconds"] >= 0 and answer["id"].startswith("ans-")
    assert answer["usage"]["completion_tokens"] == sum(one["tokens"] for one in answer["answers"])


def test_the_base_and_generation_by_default(server):
    answer = server.answer(PATH, context=CONTEXT, question=QUESTIONS[0])
    assert [(one["model"], one["method"]) for one in answer["answers"]] == [(served.BASE, "generation")]
    assert answer["answers"][0]["text"] == expected(server, served.BASE, Decoding(64, stop="\n"))[0]


def test_sampled_answers(server):
    decoding = Decoding(12, Sampling(0.8, top_p=0.9, seed=6), "e")
    answer = server.answer(PATH, context=CONTEXT, questions=QUESTIONS, model="one", max_tokens=12, temperature=0.8,
                           top_p=0.9, seed=6, stop="e")
    assert [one["text"] for one in answer["answers"]] == expected(server, "one", decoding)


@pytest.mark.parametrize("model", [served.BASE, "one", "two"])
def test_spans(server, model):
    assert server.service.models[model].extractor.smoothing == (0.2 if model == "two" else 0.0)
    answer = server.answer(PATH, context=CONTEXT, questions=QUESTIONS, model=model, methods=["span"])
    for one, best in zip(answer["answers"], spans(server, model)):
        span, = one["spans"]
        assert (span["text"], span["start"], span["end"]) == best[:3]
        assert span["log_probability"] == best.log_probability
        assert span["probability"] == pytest.approx(math.exp(best.log_probability))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_spans_by_their_expected_f1(server, temperature):
    answer = server.answer(PATH, context=CONTEXT, questions=QUESTIONS, model="two", methods=["span"], spans=3, aim="f1",
                           **({} if temperature == 2.0 else {"span_temperature": temperature}))
    how = Candidates(20, "squad", temperature)

    def ranked(one):
        prompts = [one.extractor.encoder.prompt(CONTEXT, question) for question in QUESTIONS]
        groups = [(prefix, [branch], CONTEXT) for prefix, branch in prompts]
        found = one.extractor.extract_several(groups, how.count, least_share=how.least_share)
        return [most_expected(several, how)[:3] for several in found]

    for one, best in zip(answer["answers"], alone(server, "two", ranked)):
        assert [(span["text"], span["start"], span["end"]) for span in one["spans"]] == [span[:3] for span in best]
        assert [span["expected_f1"] for span in one["spans"]] == pytest.approx([span.expected_f1 for span in best])
        assert best[0].expected_f1 == max(span.expected_f1 for span in best)


def test_the_likeliest_spans_have_no_expected_f1(server):
    answer = server.answer(PATH, context=CONTEXT, question=QUESTIONS[0], methods=["span"], aim=None)
    assert "expected_f1" not in answer["answers"][0]["spans"][0]


def test_several_spans(server):
    answer = server.answer(PATH, context=CONTEXT, question=QUESTIONS[1], model="two", methods=["span"], spans=5)
    found = answer["answers"][0]["spans"]
    assert len(found) == 5 and len({(span["start"], span["end"]) for span in found}) == 5
    assert [span["probability"] for span in found] == sorted((span["probability"] for span in found), reverse=True)
    assert all(CONTEXT[span["start"]:span["end"]] == span["text"] for span in found)
    assert found[0]["text"] == spans(server, "two")[1].text


def test_offsets_are_of_characters(server):
    context = "🎉 北京有四十二条河。 Its river is the Elbe."
    answer = server.answer(PATH, context=context, question="哪条河？", model="one", methods=["span"], spans=8)
    assert all(context[span["start"]:span["end"]] == span["text"] for span in answer["answers"][0]["spans"])


def test_a_context_without_spans(server):
    answer = server.answer(PATH, context="…!?", question="What?", model="one", methods=["span", "generation"])
    assert answer["answers"][0]["spans"] == [] and answer["answers"][1]["text"] is not None


def test_streams_are_the_whole_in_pieces(server):
    ask = {"context": CONTEXT, "questions": QUESTIONS, "models": ["one", served.BASE],
           "methods": ["generation", "span"], "max_tokens": 20, "spans": 2, "temperature": 0.9, "seed": 2}
    answer = server.answer(PATH, **ask)
    *chunks, last = server.chunks(PATH, **ask)
    assert {"usage", "seconds"} <= last.keys() and "question" not in last
    assert {(chunk["object"], chunk["id"]) for chunk in chunks} == {("answers.chunk", last["id"])}
    for one in answer["answers"]:
        key = one["question"], one["model"], one["method"]
        own = [chunk for chunk in chunks if (chunk["question"], chunk["model"], chunk["method"]) == key]
        if one["method"] == "span":
            assert [chunk["spans"] for chunk in own] == [one["spans"]]
        else:
            assert "".join(chunk["delta"] for chunk in own) == one["text"]
            assert (own[-1]["finish_reason"], own[-1]["tokens"]) == (one["finish_reason"], one["tokens"])


def test_whitespace_at_the_end_is_no_answer(server):
    """Which a stream knows only at the end."""
    for seed in range(8):
        ask = {"context": CONTEXT, "question": "?", "model": "two", "max_tokens": 8, "temperature": 2, "seed": seed,
               "stop": []}
        whole = server.answer(PATH, **ask)["answers"][0]["text"]
        pieces = [chunk.get("delta", "") for chunk in server.chunks(PATH, **ask)]
        assert "".join(pieces) == whole == whole.strip()


def test_a_context_is_read_once_for_all_questions(server):
    context = CONTEXT + " Read it once."
    usage = server.answer(PATH, context=context, questions=QUESTIONS, model="three", max_tokens=4)["usage"]
    prefix, prompts = server.service.models["three"].generator.groups([(context, q) for q in QUESTIONS])[0]
    assert usage["prompt_tokens"] == 3 * len(prefix) + sum(map(len, prompts))
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 2 * len(prefix)


@pytest.mark.parametrize("fields, param, message", [
    ({"question": "?", "questions": ["?"]}, "question", "found both"),
    ({"questions": None}, "questions", "expected at least one"),
    ({"questions": []}, "questions", "at least 1 item"),
    ({"questions": [1]}, "questions[0]", "valid string"),
    ({"questions": ["?"] * 129}, "questions", "at most 128 texts; found 129"),
    ({"questions": ["?"] * 50, "models": ["one", "two", "three"]}, "questions", "at most 128 texts; found 150"),
    ({"model": "one", "models": ["one"]}, "model", "found both"),
    ({"models": ["one", "one"]}, "models", "expected each once; found one twice"),
    ({"methods": ["guess"]}, "methods[0]", "'generation' or 'span'"),
    ({"methods": ["span", "span"]}, "methods", "expected each once"),
    ({"context": ""}, "context", "at least 1 character"),
    ({"context": "x" * 300}, "context", "at most 256 tokens"),
    ({"spans": 0}, "spans", "greater than or equal to 1"),
    ({"n": 2}, "n", "unknown field"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
])
def test_refused(server, fields, param, message):
    error = server.error(PATH, 400, **{"context": CONTEXT, "questions": QUESTIONS, **fields})
    assert error["param"] == param and message in error["message"]


def test_an_unknown_model(server):
    error = server.error(PATH, 404, context=CONTEXT, questions=QUESTIONS, models=["one", "none"])
    assert error["code"] == "model_not_found"
