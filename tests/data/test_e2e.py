from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.e2e import is_e2e, parse_e2e
from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError

TEXT = ("\ufeffname : Ä | area : city||Ä is in the city . \r\n\nname : B||B || is there .\n"
        "name : Ä | area : city||Go to Ä .")


def test_references_of_one_meaning_are_grouped():
    data = parse_e2e(TEXT, "e2e.txt")
    assert [(p.id, p.text) for p in data.prompts] == [("1", "name : Ä | area : city ||"), ("3", "name : B ||")]
    assert [(c.id, c.text) for c in data.prompts[0].completions] == [("1", " Ä is in the city ."),
                                                                     ("4", " Go to Ä .")]
    assert data.references() == {"1": ["Ä is in the city .", "Go to Ä ."], "3": ["B || is there ."]}
    assert len(data) == 3


def test_every_wrong_line_is_named():
    with pytest.raises(UserError) as caught:
        parse_e2e("a||b\nno bars\n||x\nc||\n", "e2e.txt")
    assert all(f"line {number}" in str(caught.value) for number in (2, 3, 4)) and "line 1" not in str(caught.value)
    assert parse_e2e("c||\n", "e2e.txt", "prompts").prompts[0].text == "c ||"
    with pytest.raises(UserError, match="no lines"):
        parse_e2e("\n \n", "e2e.txt")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        assert isinstance(parse_e2e(text, "e2e.txt"), PromptData)
    except UserError:
        pass
    is_e2e(text)


def test_e2e_is_told_from_json():
    assert is_e2e(TEXT)
    assert not is_e2e('{"prompt": "a||b", "completion": "c"}') and not is_e2e("")


def test_the_shipped_parts():
    train, dev = load_data("e2e"), load_data("e2e", "dev", "evaluation")
    assert (len(train), len(train.prompts), len(dev), len(dev.prompts)) == (4672, 547, 2282, 315)
    assert not {prompt.text for prompt in train.prompts} & {prompt.text for prompt in dev.prompts}
