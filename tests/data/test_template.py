from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jittor_lora.data.encoding import Encoder, TokenizerLike
from jittor_lora.data.sources import load_data
from jittor_lora.data.template import DEFAULT_TEMPLATE, Template
from jittor_lora.errors import UserError
from jittor_lora.formats.byte_level import CHARACTERS, SMOLLM, byte_level_bpe, gpt2_tokenizer
from jittor_lora.formats.tokenizer import Tokenizer

# Runs of whitespace of many kinds, letters, digits, marks and apostrophes, as told apart by GPT-2's word pattern.
TEXT = st.text(st.sampled_from(" \n\t\r\u00a0\u3000aZé中0٣.,:'s?!(\"-\u0301😀"), max_size=12) | st.text(max_size=12)
TEMPLATES = (
    DEFAULT_TEMPLATE,
    "{context}\n{question}\n{answer}",
    "{context}\n\n\n{question} = {answer}",
    "<{context}> Q:  {question}\tA:\n\n{answer}",
    "{question} Of: {context} Answer:",
    "Context: {context}\nContext: {context}\nQuestion: {question}\nAnswer:",
    "Question: {question}\nContext: {context}\nQuestion: {question}\nAnswer:",
    "Context: {context}\nQuestion: {question}\nContext: {context}\nQuestion: {question}\nAnswer:",
)


def tokenizer(backend):
    return Tokenizer(backend, {}, "a test's", eos_id=0)


GPT2 = tokenizer(gpt2_tokenizer())


@pytest.fixture(scope="module", params=["gpt2", "single digits"])
def words(request):
    if request.param == "gpt2":
        return GPT2
    # SmolLM's way of splitting text, with merges over whitespace and marks that would cross a careless boundary.
    merges = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "Ċ"), (":", "Ġ"), (":", "Ċ"), ("Ġ", "a"), ("a", "Ġ"), (":", ":")]
    tokens = [*CHARACTERS.values(), *(a + b for a, b in merges)]
    return tokenizer(byte_level_bpe({t: i for i, t in enumerate(tokens)}, merges, words=SMOLLM))


def pieces(encoder, context, question, answer):
    example = encoder.example(context, question, answer)
    return example.prefix + example.prompt + example.completion[:-1]


@pytest.mark.parametrize("text", TEMPLATES[:1] + TEMPLATES[3:])
@given(context=TEXT, question=TEXT, answer=TEXT)
@example(context="ends in space \n ", question="  starts in space", answer=" 7")
@example(context="", question="", answer="")
def test_pieces_have_the_tokens_of_the_whole_text(words, text, context, question, answer):
    template = Template(text)
    whole = template.whole(context, question, answer)
    assert pieces(Encoder(words, template), context, question, answer) == words.encode(whole)
    filled = (text if "{answer}" in text else text + " {answer}").format(
        context=context, question=question, answer=answer.strip()
    )
    assert whole == (filled if answer.strip() else filled.rstrip())


@pytest.mark.parametrize("text", TEMPLATES)
@given(context=TEXT, question=TEXT.map(str.strip).filter(bool), answer=TEXT)
def test_without_words_around_the_question_it_must_not_start_with_a_space(text, context, question, answer):
    template = Template(text)
    assert pieces(Encoder(GPT2, template), context, question, answer) == GPT2.encode(
        template.whole(context, question, answer)
    )


def test_pieces_of_the_sample_have_the_tokens_of_the_whole_text():
    encoder = Encoder(GPT2)
    for paragraph in load_data("sample-dev").paragraphs[::10]:
        for question in paragraph.questions:
            parts = paragraph.context, question.text, question.answers[0].text
            assert pieces(encoder, *parts) == GPT2.encode(encoder.template.whole(*parts))


def test_default_pieces():
    template = Template()
    assert template.prompt_pieces("C.", "Q?") == ("Context: C.\nQuestion:", " Q?\nAnswer:")
    assert template.completion_text(" A\n") == " A"
    assert template.shares_context
    assert template == Template(DEFAULT_TEMPLATE)
    assert Template(DEFAULT_TEMPLATE + " {answer}").prompt_pieces("C", "Q") == template.prompt_pieces("C", "Q")


def test_a_context_after_the_question_is_not_shared():
    template = Template("Q: {question}\n{{T}}: {context}\nA: {answer}")
    assert not template.shares_context
    assert template.prompt_pieces("C", "{Q}") == ("", "Q: {Q}\n{T}: C\nA:")


@pytest.mark.parametrize(
    ("text", "prefix", "branch"),
    [
        ("C: {context}\nC: {context}\nQ: {question}\nA:", "C: c\nC: c\nQ:", " q\nA:"),
        ("C: {context}\nQ: {question}\nC: {context}\nQ: {question}\nA:", "C: c\nQ:", " q\nC: c\nQ: q\nA:"),
        ("Q: {question}\nC: {context}\nQ: {question}\nA:", "", "Q: q\nC: c\nQ: q\nA:"),
    ],
)
def test_repeated_fields_are_shared_up_to_the_first_question(text, prefix, branch):
    assert Template(text).prompt_pieces("c", "q") == (prefix, branch)
    assert Template(text).shares_context == bool(prefix)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["{context} is missing", "{question} is missing"]),
        ("{context} {answer}", ["{question} is missing"]),
        ("{context}{question}{answer}.", ["nothing may follow {answer}"]),
        ("{answer}{context}{question}", ["nothing may follow {answer}"]),
        ("{context}{answer}{question}{answer}", ["nothing may follow {answer}"]),
        ("{context}{question}{passage}{}", ["found {passage}", "found {}"]),
        ("{context:>9}{question!r}", ["{context} cannot be formatted", "{question} cannot"]),
        ("{context}{question}}", ["Single '}'", "{{ and }}"]),
        ("{context.__class__}{question}", ["found {context.__class__}"]),
    ],
)
def test_wrong_templates_are_refused_with_every_reason(text, words):
    with pytest.raises(UserError) as caught:
        Template(text)
    for word in words:
        assert word in str(caught.value)


def test_a_plain_prompt_is_cut_before_its_last_token():
    encoder = Encoder(GPT2)
    first, last = encoder.plain_prompt("Once upon a time")
    assert first + last == GPT2.encode("Once upon a time")
    assert len(last) == 1
    assert encoder.plain_prompt("") == ([], [])


def test_without_end_of_text_nothing_is_added():
    class Letters(TokenizerLike):
        eos_id = None

        def encode(self, text):
            return [ord(c) for c in text]

    assert Encoder(Letters()).completions("c", [99], ["ab", ""]) == [([99], [97, 98]), ([99], [])]
