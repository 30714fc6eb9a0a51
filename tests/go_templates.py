"""The part of Go's text/template that our Modelfiles use, and how Ollama's parser finds a value in one."""

from __future__ import annotations

import re

_PARTS = re.compile(r'\{\{ ("(?:[^"\\]|\\.)*"|[^"{}]+?(?:"\w+")?) \}\}')


def template_of(modelfile: str) -> str:
    """The value of TEMPLATE, without the characters that Ollama's parser drops."""
    value = re.search(r'(?ms)^TEMPLATE """(.*?)"""$', modelfile).group(1)
    return "".join(c for c in value if c.isprintable() or c in "\n\t")


def execute(program: str, **values) -> str:
    text, rest = _run(_tokens(program), values, None)
    assert not rest
    return text


def chat(program: str, *messages: tuple[str, str]) -> str:
    """As Ollama executes a program that uses .Messages: (role, content)."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    return execute(program, System=system, Messages=[{"Role": role, "Content": content} for role, content in messages])


def _tokens(program: str) -> list[tuple[str, str]]:
    found, at = [], 0
    for match in _PARTS.finditer(program):
        assert not program[at : match.start()].endswith("{"), program  # Go begins an action at the first two
        found += [("text", program[at : match.start()]), ("action", match.group(1))]
        at = match.end()
    found.append(("text", program[at:]))
    assert not any("{{" in part for kind, part in found if kind == "text"), program
    return found


def _run(tokens: list[tuple[str, str]], values: dict, item: dict | None) -> tuple[str, list]:
    """The text up to an `end` or `else`, and what follows from there."""
    out = ""
    while tokens:
        (kind, part), *tokens = tokens
        if kind == "text":
            out += part
        elif part in ("end", "else"):
            return out, [(kind, part), *tokens]
        elif part.startswith("range "):
            for each in [*values[part[7:]], None]:  # the last time only to pass the block
                text, (_, *after) = _run(tokens, values, each if each is not None else {"Role": "", "Content": ""})
                out += text if each is not None else ""
            tokens = after
        elif part.startswith("if "):
            yes, tokens = _run(tokens, values, item)
            no = ""
            if tokens[0][1] == "else":
                no, tokens = _run(tokens[1:], values, item)
            tokens = tokens[1:]
            out += yes if _holds(part[3:], values, item) else no
        elif part.startswith('"'):
            out += re.sub(r'\\(U[0-9a-f]{8}|")', lambda m: m[1] if m[1] == '"' else chr(int(m[1][1:], 16)), part[1:-1])
        else:
            assert part.startswith(".")
            out += (item if item is not None else values)[part[1:]]
    return out, []


def _holds(condition: str, values: dict, item: dict | None) -> bool:
    if condition.startswith("not "):
        return not _holds(condition[4:], values, item)
    equal = re.fullmatch(r'eq \.Role "(\w+)"', condition)
    return item["Role"] == equal.group(1) if equal else bool(values[condition[1:]])
