from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.encoding import TokenizerLike
from jittor_lora.data.window import WORD, Words


class Letters(TokenizerLike):
    """Every character is a token."""

    eos_id = 0

    def encode(self, text):
        return [ord(c) for c in text]


CONTEXT = st.text(st.sampled_from("ab中 \n\u3000."), min_size=1, max_size=80)


@given(CONTEXT)
def test_the_words_add_up_to_the_context(context):
    assert "".join(WORD.findall(context)) == context
    words = Words(context, Letters())
    assert words.bounds[-1] == words.costs[-1] == len(context)


@given(CONTEXT, st.data())
def test_a_window_contains_its_middle_and_keeps_to_the_budget(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    words = Words(context, Letters())
    least = words.around(start, end, 0)
    for budget in (0, 5, 20, 60, 200):
        begin, stop = words.around(start, end, budget)
        assert 0 <= begin <= start < end <= stop <= len(context)
        assert stop - begin <= max(budget, least[1] - least[0] + 16)
        assert begin == start or not context[begin].isspace()
        assert stop == end or not context[stop - 1].isspace()
    whole = words.around(start, end, len(context))
    assert context[slice(*whole)].strip() == context.strip()


@given(CONTEXT, st.integers(-5, 100))
def test_a_head_starts_at_the_beginning_and_keeps_to_the_budget(context, budget):
    begin, stop = Words(context, Letters()).head(budget)
    assert begin == 0
    assert stop <= max(budget, 0)
    if budget >= len(context):
        assert context[:stop] == context.rstrip()


def test_a_window_reaches_further_where_the_other_side_ends():
    words = Words("aa bb cc dd ee ff gg", Letters())

    def window(start, end, budget):
        return words.context[slice(*words.around(start, end, budget))]

    assert window(9, 11, 9) == "cc dd ee"
    assert window(0, 2, 8) == "aa bb cc"
    assert window(18, 20, 9) == "ee ff gg"
    assert window(10, 11, 0) == "dd"
