"""`jittor-lora generate`: continue a prompt, or answer questions about a context."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

from jittor_lora.cli.flags import add_flags, from_flags
from jittor_lora.cli.options import ComputeOptions, ModelOptions, SamplingOptions
from jittor_lora.cli.output import json_text
from jittor_lora.data.records import records
from jittor_lora.data.special_tokens import special_token_lines
from jittor_lora.data.template import Template
from jittor_lora.data.text_file import MISSING, Offenders, is_text, read_text
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, TEXT, VERBATIM, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import (
    LINE_BREAKS,
    SpecialTokens,
    TemplateText,
    special_tokens_setting,
    template_setting,
)
from jittor_lora.settings.text import flag
from jittor_lora.system.waiting import silence_explained

if TYPE_CHECKING:
    from jittor_lora.inference.generator import Decoding, Generator

PROMPT, GENERATION = "Prompt (one of --prompt, --context with --question, --file, --interactive)", "Generation"
RECORDS_AT_A_TIME = 64


class GenerateOptions(SamplingOptions, ComputeOptions, ModelOptions):
    prompt: Optional[str] = setting(None, PROMPT, "text to continue", holds=VERBATIM, min_length=1)
    context: Optional[str] = setting(None, PROMPT, "paragraph to ask about", holds=VERBATIM, min_length=1)
    question: Optional[str] = setting(None, PROMPT, "question about --context", holds=VERBATIM, min_length=1)
    file: Optional[str] = setting(None, PROMPT, "JSON Lines with prompt, or context and question; each record is "
                                  "printed as a line of JSON with its continuation", holds=PATH, min_length=1)
    interactive: bool = setting(False, PROMPT, "read prompts, or questions about --context, one per line")
    template: TemplateText = template_setting(PROMPT, "text with {context}, {question} and {answer}, as in training")
    special_tokens: SpecialTokens = special_tokens_setting(PROMPT)

    max_new_tokens: int = setting(64, GENERATION, "maximum length of the continuation in tokens", ge=1)
    stop: Optional[str] = setting(None, GENERATION, "where to stop besides the end-of-text token: newline, a text, or "
                                  "eos for nowhere else; by default newline for questions, eos for prompts; "
                                  + LINE_BREAKS, holds=TEXT, min_length=1)

    samples: int = setting(1, GENERATION, "continuations per prompt, sampled or the best beams; several are printed as "
                           "JSON", ge=1)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.samples > 1 and self.temperature == 0 and self.beams < self.samples:
            yield Problem(("samples", "temperature", "beams"),
                          "several continuations need a temperature above 0, or at least as many beams")
        ways = [name for name in ("prompt", "question", "file", "interactive") if getattr(self, name)]
        if len(ways) > 1:
            yield Problem(tuple(ways), f"cannot be given together with {' and '.join(ways[1:])}; give one of them")
        if not ways:
            yield Problem(("prompt", "question", "file", "interactive"),
                          "give a text to continue: --prompt, --context with --question, --file or --interactive")
        if self.question is not None and self.context is None:
            yield Problem(("question", "context"), "needs the paragraph to read; give --context, or --prompt for a "
                          "text without one")
        if self.context is not None and ways in (["prompt"], ["file"]):
            yield Problem(("context", ways[0]), f"has no effect with --{ways[0]}; leave it out")

    def stop_text(self, is_question: bool) -> str | None:
        stop = self.stop or ("newline" if is_question else "eos")
        return {"newline": "\n", "eos": None}.get(stop, stop)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate", help="continue a prompt or answer questions",
        usage="jittor-lora generate --base B [--adapter DIR] (--prompt TEXT | --context TEXT --question TEXT | "
              "--file FILE | --interactive) [any flag below]",
        description="Continue a prompt, or answer a question about a context. The continuation alone goes to standard "
                    "output, everything else to standard error.")
    parser.add_argument("--no-adapter", action="store_true",
                        help="leave the adapter out, to see the base's own continuation")
    add_flags(parser, GenerateOptions)


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, GenerateOptions)
    for name in options.holding(VERBATIM):
        if r"\n" in (getattr(options, name) or ""):
            print(f"note: {flag(name)} contains \\n, which is used literally. For a line break write "
                  rf"{flag(name)} $'…\n…' in the shell, or use --file.", file=sys.stderr)
    asked = read_records(options.file) if options.file else []
    base, adapter = options.base_and_adapter()
    from jittor_lora.formats.hugging_face import sampling_lines
    from jittor_lora.inference.generator import Generator
    from jittor_lora.session import load
    options.set_threads()
    session = load(base, None if args.no_adapter else adapter, options.precision)
    session.tokenizer.special_tokens = options.special_tokens
    generator = Generator(session.model, session.tokenizer, Template(options.template))
    for line in (*_special_tokens(session.tokenizer.special, options, asked), *sampling_lines(session.checkpoint)):
        print(line, file=sys.stderr)
    if options.file:
        _continue_records(generator, options, asked)
    elif options.interactive:
        _converse(generator, options)
    else:
        _print_one(generator, options, options.context, options.question or options.prompt)
    return 0


def _special_tokens(special: Sequence[str], options: GenerateOptions, records: list[dict[str, Any]]) -> list[str]:
    """Notes on the special tokens spelled out in prompts, questions and contexts."""
    asked = [[record[key] for key in ("prompt", "context", "question") if key in record] for record in records] or [
        [text for text in (options.prompt, options.context, options.question) if text is not None]]
    return special_token_lines(asked, special, options.special_tokens, "prompts")


def read_records(path: str) -> list[dict[str, Any]]:
    """The records of a JSON Lines file, each with `prompt`, or `context` and `question`.

    Raises:
        UserError: the file cannot be read, or lines are not such records; all are counted.
    """
    offenders, found = Offenders(path), []
    for place, record in records(read_text(path), offenders):
        if not isinstance(record, dict):
            offenders.add(place, "a JSON object", record)
            continue
        needed = ("prompt",) if "prompt" in record else ("context", "question")
        for key in needed:
            if not is_text(record.get(key)) or not record[key].strip():
                offenders.add(f"{place}, {key}", "text that is not empty", record.get(key, MISSING))
        found.append(record)
    offenders.check('Each line is {"prompt": …} or {"context": …, "question": …}.')
    return found


def _decoding(options: GenerateOptions, is_question: bool) -> Decoding:
    return options.decoding(options.max_new_tokens, options.stop_text(is_question))


def _print_one(generator: Generator, options: GenerateOptions, context: str | None, text: str) -> None:
    """Print the continuation of a prompt, or the answer to a question about `context`: token by token on a terminal, as
    lines of JSON if there are several."""
    decoding, pieces = _decoding(options, context is not None), sys.stdout.isatty() and options.samples == 1

    with silence_explained() as first_piece:

        def show(piece: str) -> None:
            first_piece()
            if pieces:
                print(piece, end="", flush=True)

        if options.samples > 1:
            texts = _several(generator, [(context, text)], decoding, options.samples)[0]
            whole = "\n".join(json_text({"continuation": text}) for text in texts)
        elif context is None:
            whole = generator.continue_text(text, decoding, show)
        else:
            whole = generator.answer(context, [text], decoding, lambda _, piece: show(piece))[0].rstrip()
    print("" if pieces else whole, flush=True)


def _several(generator: Generator, asked: list[tuple[str | None, str]], decoding: Decoding,
             count: int) -> list[list[str]]:
    is_question = asked[0][0] is not None
    if count == 1:
        found = [[text] for text in generator.continue_groups(generator.groups(asked), decoding, trim=is_question)]
    else:
        found = generator.continuations(generator.groups(asked), decoding, count, trim=is_question)
    return [[text.rstrip() if is_question else text for text in texts] for texts in found]


def _converse(generator: Generator, options: GenerateOptions) -> None:
    """Answer each line of standard input: a prompt, or a question about the context."""
    sys.stdin.reconfigure(errors="replace")
    name = "Prompt" if options.context is None else "Question"
    print("One per line; Ctrl-D ends.", file=sys.stderr)
    while True:
        print(f"{name}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        if line.strip():
            try:
                _print_one(generator, options, options.context, line.rstrip("\n"))
            except UserError as error:  # of this line only, such as a prompt that is too long
                print(error, file=sys.stderr)


def _context(record: dict[str, Any]) -> str | None:
    return None if "prompt" in record else record["context"]


def _continue_records(generator: Generator, options: GenerateOptions, records: list[dict[str, Any]]) -> None:
    """Print each record as a line of JSON with its `continuation`."""
    done = 0
    for is_question, same in itertools.groupby(records, lambda record: "prompt" not in record):
        decoding, alike = _decoding(options, is_question), list(same)
        for first in range(0, len(alike), RECORDS_AT_A_TIME):
            some = alike[first : first + RECORDS_AT_A_TIME]
            asked = [(_context(r), r["question"] if is_question else r["prompt"]) for r in some]
            for record, texts in zip(some, _several(generator, asked, decoding, options.samples)):
                found = {"continuation": texts[0]} if options.samples == 1 else {"continuations": texts}
                print(json_text({**record, **found}), flush=True)
            done += len(some)
            print(f"{done:,} of {len(records):,}", file=sys.stderr)
