"""Modelfiles: their templates against the Jinja programs and the template of training."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import go_templates
from jittor_lora.data.chat_template import ChatTemplate
from jittor_lora.data.conversations import Turn
from jittor_lora.data.named_templates import NAMED, named_source
from jittor_lora.data.prompting import Prompting
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.go_template import literal, texts_of
from jittor_lora.formats.ollama import modelfile
from jittor_lora.formats.tokenizer import Tokenizer
from model_files import make_bpe

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [("user", "Hello {{ .System }}"), ("assistant", "It's \"so\"."), ("user", "北京?\n\nWhy"), ("assistant", "a{"),
        ("user", "x")]
GUIDED = [("system", "Be brief."), *TALK]
LITERALS = st.text(st.sampled_from('{}"\\ab \n\t\r\u3000\u00a0\u200d\U000e0041北-'), max_size=12)


def tokenizer(begins: bool = False) -> Tokenizer:
    made = make_bpe()
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    found = Tokenizer(made, config, "test", 299)
    found.opening = [299] if begins else []
    return found


def of(prompting: Prompting, begins: bool = False, **changed) -> str:
    return modelfile(**{"model": "./model.gguf", "adapter": None, "prompting": prompting,
                        "tokenizer": tokenizer(begins), "positions": 4096, **changed})


def jinja(source: str) -> ChatTemplate:
    return ChatTemplate(source, "test", TOKENS)


@pytest.mark.parametrize("name", NAMED)
def test_named_chat_templates(name):
    template = jinja(named_source(name, False))
    program = go_templates.template_of(of(Prompting(chat=template, conversations=True)))
    for talk in (TALK[:1], TALK[:3], TALK, GUIDED[:2], GUIDED):
        expected = template.render([Turn(*message) for message in talk], True)
        assert go_templates.chat(program, *talk) == expected


@pytest.mark.parametrize("source, system", [
    # Qwen2.5's kind: a system's message of its own
    ("{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Q \"{{ '{{' }}\"<|im_end|>\n{% endif %}"
     "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
     "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}", True),
    ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
     "<{{ m.role }}>{{ m.content }}\u3000{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}", False),
    ("{% for m in messages if m.role != 'system' %}{{ m.content }}\n{% endfor %}", False),
])
def test_other_chat_templates(source, system):
    template = jinja(source)
    text = of(Prompting(chat=template, conversations=True))
    for talk in (TALK[:1], TALK, *([GUIDED] if system else [])):
        expected = template.render([Turn(*message) for message in talk], True)
        assert go_templates.chat(go_templates.template_of(text), *talk) == expected
    assert ("no place for a system's message" in text) != system


@pytest.mark.parametrize("source", [
    "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",  # counts
    "{% for m in messages %}{{ m.content | upper }}\n{% endfor %}",
    "{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}",
    "{% for m in messages %}{% if messages[0].role == 'system' and loop.last %}{{ messages[0].content }}{% endif %}"
    "{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}",  # old Mistral: before the last
    "constant", "{{ raise_exception('never') }}",
])
def test_chat_templates_that_do_more_are_not_translated(source):
    text = of(Prompting(chat=jinja(source), conversations=True))
    assert go_templates.template_of(text) == "{{ .Prompt }}" and '"raw": true' in text


def test_the_token_that_ollama_puts_first_is_left_out():
    template = ChatTemplate(named_source("llama3", True), "test", {"bos_token": "<|endoftext|>"})
    prompting = Prompting(chat=template, conversations=True)
    expected = template.render([Turn(*message) for message in GUIDED], True)
    for begins in (True, False):
        program = go_templates.template_of(of(prompting, begins))
        assert ("<|endoftext|>" if begins else "") + go_templates.chat(program, *GUIDED) == expected
    without = Prompting(chat=jinja(named_source("chatml", False)), conversations=True)
    assert go_templates.template_of(of(without, True)) == "{{ .Prompt }}"


@settings(max_examples=60)
@given(before=LITERALS, between=LITERALS, after=LITERALS)
@example(before='"""', between="{", after='{{"')
def test_templates_of_questions(before, between, after):
    doubled = [text.replace("{", "{{").replace("}", "}}") for text in (before, between, after)]
    template = Template(f"{doubled[0]}{{context}}{doubled[1]}{{question}}{doubled[2]}")
    program = go_templates.template_of(of(Prompting(template)))
    said = go_templates.execute(program, System="C {{ x }}", Prompt="Q?")
    assert said == "".join(template.prompt_pieces("C {{ x }}", "Q?"))
    assert go_templates.execute(program, System="", Prompt="plain {{") == "plain {{"


@given(LITERALS)
def test_literals(text):
    program = literal(text)
    assert '"""' not in f'{program}"""'[:-3] and not program.endswith('"') or program.endswith('" }}')
    assert go_templates.execute(program) == text
    assert all(c.isprintable() or c in "\n\t" for c in program)


def test_the_whole_file():
    text = of(Prompting(), model="/models/my base.gguf", adapter="./adapter.gguf", positions=1024)
    assert text.splitlines()[0] == "# ollama create NAME -f Modelfile"
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["FROM /models/my base.gguf", "ADAPTER ./adapter.gguf",
                     'TEMPLATE """{{ if .System }}Context: {{ .System }}', "Question: {{ .Prompt }}",
                     'Answer:{{ else }}{{ .Prompt }}{{ end }}"""', "PARAMETER temperature 0", "PARAMETER num_ctx 1024",
                     'PARAMETER stop "<|endoftext|>"']
    assert "num_ctx" not in of(Prompting())
    with pytest.raises(UserError, match="a Modelfile cannot hold this path"):
        of(Prompting(), model="/a\nFROM b")


def test_a_template_that_only_reads():
    assert texts_of(jinja("{% for m in messages %}{{ m.content }}{% endfor %}")).go().count("{{ .Content }}") == 3
