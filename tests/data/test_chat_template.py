from __future__ import annotations

import datetime
import gc
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jittor_lora.data.chat_template import LARGEST_TEMPLATE, ChatTemplate, Rendering, TemplateRefusal
from jittor_lora.data.conversations import Turn
from jittor_lora.errors import UserError

TURNS = (Turn("user", "hi"), Turn("assistant", "ho"), Turn("user", "again"))
WALL_SECONDS = 30  # far above the limit of processor time: the machine may be busy


def render(source: str, turns=TURNS, prompt: bool = False, **options) -> str:
    return ChatTemplate(source, "model/chat_template.jinja", **options).render(turns, prompt)


@pytest.mark.parametrize(("source", "expected"), [
    ("{% for m in messages %}{{ m.role }}={{ m['content'] }};{% endfor %}", "user=hi;assistant=ho;user=again;"),
    ("{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n",
     "hi\nagain\n"),  # trim_blocks and lstrip_blocks
    ("{{ eos_token }}{{ bos_token }}{{ nothing }}|", "</s>|"),
    ("{{ {'a': 'é<'} | tojson }}{{ [1] | tojson(indent=2) }}", '{"a": "é<"}[\n  1\n]'),
    ("{% generation %}{{ messages[0].content }}\n{% endgeneration %}", "hi\n"),
    ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}", "ho"),
    ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
    ("{{ enable_thinking is false }}{{ tools is none }}{{ documents is none }}", "TrueTrueTrue"),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
    ("🎉\u2028{{ '北京' }}\r\nx", "🎉\u2028北京\nx"),
])
def test_renders_as_transformers_does(source, expected):
    assert render(source, tokens={"eos_token": "</s>"}, arguments={"enable_thinking": False},
                  now=datetime.datetime(2024, 7, 26)) == expected


def test_several_renderings():
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>"
                            "{% elif messages | length == 2 %}{{ raise_exception('no') }}{% endif %}", "t")
    found = template.render_all(TURNS, [Rendering(1, True), Rendering(2), Rendering(3)])
    assert (found[0], found[2]) == ("hi>", "hihoagain")
    assert isinstance(found[1], TemplateRefusal) and found[1].words == "no"


def test_whether_it_uses_the_date():
    assert ChatTemplate("{{ strftime_now('%Y') }}", "t").uses_date
    assert not ChatTemplate("{{ messages }}", "t").uses_date


@pytest.mark.parametrize(("source", "words"), [
    ("{{ raise_exception('Roles must alternate.') }}", "refuses the conversation: Roles must alternate."),
    ("{{ tool.name }}", "'tool' is undefined"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("a\n{% if %}", "not a chat template that Jinja2 reads: Expected an expression"),
    ("a\n{% if %}", "(line 2)"),
    ("{{ [1, 2] | random }}", "No filter named 'random'"),
    ("{{ '\x1b[31m' }}{{ raise_exception('\x1b]0;x') }}", r"refuses the conversation: \x1b]0;x"),
    ("{# " + "x" * LARGEST_TEMPLATE + " #}", "at most 524,288 characters; found 524,294"),
])
def test_what_it_cannot_render(source, words):
    with pytest.raises(UserError) as caught:
        render(source)
    assert str(caught.value).startswith("model/chat_template.jinja: ") and words in str(caught.value)


NESTED = "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}" \
         "{% set ns.b = [ns.b, ns.b] %}{% endfor %}"


@pytest.mark.parametrize("source", [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% set x = [0] * 10**8 %}",
    "{{ 'x' | center(10**9) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    NESTED + "{{ ns.a == ns.b }}",  # one call in C, which no signal handler interrupts
    NESTED + "{{ ns.a }}",
    NESTED + "{{ ns.a | tojson }}",
    "{{ 7 ** (7 ** 9) }}",
    "{{ ('a ' * 10**7) | wordwrap(1) }}",
    "{% for a in range(99999) %}{% for b in range(99) %}{{ messages }}{% endfor %}{% endfor %}",
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "{{ 1" + "+1" * 99999 + " }}",
    "{% if 1 %}" * 9999 + "{% endif %}" * 9999,
    "{{ 1" + "0" * 400000 + " }}",
], ids=lambda source: source[-50:])
def test_hostile_templates_end(source):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^model/chat_template\.jinja: "):
        render(source)
    assert time.monotonic() - started < WALL_SECONDS


def test_the_next_conversation_is_rendered_after_a_limit():
    template = ChatTemplate("{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) "
                            "%}{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}", "t")
    assert template.render(TURNS) == "hi"
    with pytest.raises(UserError, match="takes more than 1 second"):
        template.render([Turn("user", "loop")])
    assert template.render(TURNS) == "hi"


_PIECES = (
    "{{ ", " }}", "{% ", " %}", "{#", "#}", "-", "\n", "\x00", "\ud800", "x", "messages", "'a'", "10**9",
    "range(99999)", "for x in ", "endfor", "break", "if ", "else", "endif", "set x = ", "endset", "macro f(x)",
    "endmacro", "f(f)",
    "call f(1)", "endcall", "filter upper", "endfilter", "generation", "endgeneration", "raise_exception(x)", "*", "~",
    "==", "|list", "|join", "|tojson", ".content", ".__class__", "[::-1]", "[", "]", "(", ")", "namespace(x=x)",
    "x.x = [x, x]")


@pytest.mark.slow
@settings(max_examples=40, derandomize=True)
@given(st.lists(st.sampled_from(_PIECES), max_size=30))
def test_any_template_ends_in_a_text_or_a_message(pieces):
    try:
        assert isinstance(render("".join(pieces)), str)
    except UserError as error:
        assert str(error).startswith("model/chat_template.jinja: ")


@settings(max_examples=200)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_texts_come_back_as_they_are(texts):
    assert ECHO.render([Turn("user", text) for text in texts]) == "".join(f"<{text}>" for text in texts)


ECHO = ChatTemplate("{% for m in messages %}<{{ m.content }}>{% endfor %}", "echo")


def test_a_process_that_cannot_start(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(UserError, match="cannot be started: /nowhere/python: No such file"):
        render("x")


def test_threads_take_turns():
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        found[number] = [ECHO.render([Turn("user", str(number))]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [f"<{number}>"] * 50 for number in range(4)}


def test_a_forked_process_renders_by_itself():
    assert ECHO.render([Turn("user", "1")]) == "<1>"
    child = os.fork()
    if child == 0:
        os._exit(0 if ECHO.render([Turn("user", "2")]) == "<2>" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ECHO.render([Turn("user", "3")]) == "<3>"


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as stream:
        return set(stream.read().split())


@pytest.mark.skipif(not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="no children in /proc")
def test_its_process_ends_with_it():
    before = children()
    template = ChatTemplate("{{ messages[0].content }}", "t")
    assert template.render(TURNS) == "hi"
    assert len(children() - before) == 1
    del template
    gc.collect()
    assert children() <= before
