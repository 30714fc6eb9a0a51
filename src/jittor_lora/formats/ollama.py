"""Ollama's Modelfile: the model, and how its training put examples into texts.

Ollama's parser keeps a value as it stands between three quotation marks. `{{ .System }}` takes the context of a
question: with it, a prompt is a question in the template of training, without it, a text to continue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator, Optional

from jittor_lora.data.prompting import Prompting
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.go_template import literal, texts_of
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.formats.tokenizer_steps import named_tokens

FILE_NAME = "Modelfile"
_CONTEXT, _QUESTION = "\ue000", "\ue001"  # marks that no template holds
_RAW = "{{ .Prompt }}"
_DEFAULT_WINDOW = 4096  # tokens that Ollama reads unless told otherwise


def modelfile(model: Path | str, adapter: str | None, prompting: Prompting, tokenizer: Tokenizer,
              positions: int) -> str:
    """The file's text.

    Args:
        model: the GGUF file, as it is found from the Modelfile.
        adapter: the GGUF file of an adapter.
        prompting: of the training.
        positions: the longest text that the model reads.

    Raises:
        UserError: the path cannot be written into a Modelfile.
    """
    if not str(model).isprintable():
        raise UserError(f"{model!r}: a Modelfile cannot hold this path. Move the base to a path of printable "
                        "characters.")
    template, notes = _template(prompting, tokenizer)
    lines = ["# ollama create NAME -f Modelfile", *(f"# {note}" for note in notes), f"FROM {model}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    lines += [f'TEMPLATE """{template}"""', "PARAMETER temperature 0"]
    if positions < _DEFAULT_WINDOW:
        lines.append(f"PARAMETER num_ctx {positions}")
    lines += [f'PARAMETER stop "{stop}"' for stop in _stops(tokenizer)]
    return "\n".join(lines) + "\n"


def _template(prompting: Prompting, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """The program, and what to know about it."""
    if not prompting.conversations:
        return _question_template(prompting.template), [
            "ollama run NAME", "A question about a context: the context is the system's message (/set system ...), the "
            "prompt the question.", "Without a system's message the prompt is a text to continue."]
    begin = named_tokens(tokenizer.config).get("bos_token", "") if tokenizer.opening else ""
    texts = texts_of(prompting.chat, begin) if prompting.chat else None
    if texts is None:
        return _RAW, ["The chat template does more than write texts around messages, so it is not translated:",
                      "render it yourself, and send the text with \"raw\": true to /api/generate. It is in the GGUF "
                      "file, tokenizer.chat_template."]
    notes = ["ollama run NAME", "TEMPLATE writes what the chat template of training writes; but that may strip white "
             "space around messages."]
    if texts.system is None:
        notes.append("It has no place for a system's message.")
    return texts.go(), notes


def _question_template(template: Template) -> str:
    text = "".join(template.prompt_pieces(_CONTEXT, _QUESTION))
    fields = {_CONTEXT: "{{ .System }}", _QUESTION: "{{ .Prompt }}"}
    return f"{{{{ if .System }}}}{''.join(_filled(text, fields))}{{{{ else }}}}{_RAW}{{{{ end }}}}"


def _filled(text: str, fields: dict[str, str]) -> Iterator[str]:
    literal_part = ""
    for character in text:
        if character in fields:
            yield literal(literal_part)
            yield fields[character]
            literal_part = ""
        else:
            literal_part += character
    yield literal(literal_part)


def _stops(tokenizer: Tokenizer) -> Iterable[str]:
    """The spellings of the tokens that end a text."""
    by_id = {index: token for token, index in tokenizer.vocabulary.items()}
    found: list[Optional[str]] = [by_id.get(index) for index in sorted(tokenizer.end_ids)]
    return [text for text in found if text in tokenizer.special and text.isprintable() and '"' not in text]
