"""`jittor-lora generate`: continue a prompt, or answer questions about a context."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional

from jittor_lora.cli.ensemble import add_ensemble, further_adapters
from jittor_lora.cli.flags import add_flags, from_flags
from jittor_lora.cli.options import ComputeOptions, ModelOptions, SamplingOptions
from jittor_lora.cli.output import json_text
from jittor_lora.data.conversations import ASSISTANT, USER, Turn
from jittor_lora.data.messages import conversation_to_answer
from jittor_lora.data.prompting import Choices
from jittor_lora.data.records import json_records
from jittor_lora.data.special_tokens import special_token_lines
from jittor_lora.data.text_file import MISSING, Offenders, is_text, read_text
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, TEXT, VERBATIM, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.shared import (
    LINE_BREAKS,
    ChatArguments,
    OptionalTemplateText,
    SpecialTokens,
    chat_arguments_setting,
    chat_template_setting,
    own_special_tokens_setting,
    own_template_setting,
)
from jittor_lora.settings.text import flag
from jittor_lora.system.waiting import silence_explained

if TYPE_CHECKING:
    from jittor_lora.inference.asking import Asked
    from jittor_lora.inference.generator import Decoding, Generator

PROMPT, GENERATION = "Prompt (one of --prompt, --context with --question, --file, --interactive)", "Generation"
RECORDS_AT_A_TIME = 64


class GenerateOptions(SamplingOptions, ComputeOptions, ModelOptions):
    prompt: Optional[str] = setting(None, PROMPT, "text to continue", holds=VERBATIM, min_length=1)
    context: Optional[str] = setting(None, PROMPT, "paragraph to ask about", holds=VERBATIM, min_length=1)
    question: Optional[str] = setting(None, PROMPT, "question about --context", holds=VERBATIM, min_length=1)
    file: Optional[str] = setting(None, PROMPT, "JSON Lines with prompt, messages, or context and question; each "
                                  "record is printed as a line of JSON with its continuation", holds=PATH, min_length=1)
    interactive: bool = setting(False, PROMPT, "read prompts, or questions about --context, one per line; in a chat "
                                "each line continues the conversation")
    chat: Optional[bool] = setting(None, PROMPT, "a prompt is a user's turn, put into the chat template; by default "
                                   "where the adapter learnt conversations")
    system: Optional[str] = setting(None, PROMPT, "in a chat: the turn of a system before the user's", holds=VERBATIM,
                                    min_length=1)
    template: OptionalTemplateText = own_template_setting(PROMPT)
    chat_template: Optional[str] = chat_template_setting(PROMPT, "that of the adapter's training, else the base's")
    chat_arguments: ChatArguments = chat_arguments_setting(PROMPT)
    special_tokens: Optional[SpecialTokens] = own_special_tokens_setting(PROMPT)

    max_new_tokens: Optional[int] = setting(None, GENERATION, "maximum length of the continuation in tokens; by "
                                            "default 64, in a chat 256", ge=1)
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
        if self.chat is False and self.system is not None:
            yield Problem(("system", "chat"), "has no effect without a chat; leave it out")
        if self.chat and self.context is not None:
            yield Problem(("chat", "context"), "questions about a context go into --template; leave one of the two out")
        if self.context is not None and ways in (["prompt"], ["file"]):
            yield Problem(("context", ways[0]), f"has no effect with --{ways[0]}; leave it out")

    def asked(self) -> dict[str, str]:
        """What is asked by flags, as a record of --file; empty if nothing is."""
        names = ("context", "question") if self.question else ("prompt",)
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def decoding_of(self, asked: Asked) -> Decoding:
        """How this is answered."""
        from jittor_lora.inference.asking import Question, Talk
        stop = self.stop or ("newline" if isinstance(asked, Question) else "eos")
        most = self.max_new_tokens or (256 if isinstance(asked, Talk) else 64)
        return self.decoding(most, {"newline": "\n", "eos": None}.get(stop, stop))


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate", help="continue a prompt or answer questions",
        usage="jittor-lora generate --base B [--adapter DIR] (--prompt TEXT | --context TEXT --question TEXT | "
              "--file FILE | --interactive) [any flag below]",
        description="Continue a prompt, or answer a question about a context. The continuation alone goes to standard "
                    "output, everything else to standard error.")
    parser.add_argument("--no-adapter", action="store_true",
                        help="leave the adapter out, to see the base's own continuation")
    add_ensemble(parser)
    add_flags(parser, GenerateOptions)


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, GenerateOptions)
    for name in options.holding(VERBATIM):
        if r"\n" in (getattr(options, name) or ""):
            print(f"note: {flag(name)} contains \\n, which is used literally. For a line break write "
                  rf"{flag(name)} $'…\n…' in the shell, or use --file.", file=sys.stderr)
    records = read_records(options.file) if options.file else []
    base, adapter = options.base_and_adapter()
    ensemble = further_adapters(args, options)
    if ensemble and args.no_adapter:
        raise UserError("--ensemble, --no-adapter: leave one of the two out.")
    from jittor_lora.formats.hugging_face import sampling_lines
    from jittor_lora.inference.generator import Generator
    from jittor_lora.session import load
    from jittor_lora.tasks.ensemble import load_ensemble
    options.set_threads()
    session = load(base, None if args.no_adapter else adapter, options.precision, options.base_precision)
    names = load_ensemble(session, ensemble)
    prompting = session.choose_prompting(Choices.of(options))
    talks = prompting.conversations if options.chat is None else options.chat
    if options.system is not None and not talks:
        raise UserError("--system has no effect, as prompts are continued as they are; add --chat, or leave it out.")
    asked = [_asked(record, talks, options.system) for record in records or [options.asked()] if record]
    chat = session.chat_encoder(prompting) if talks or any("messages" in record for record in records) else None
    generator = Generator(session.model, session.tokenizer, prompting.template, chat, names)
    texts = [[text for text in record.values() if isinstance(text, str)] for record in records or [options.asked()]]
    for line in (*special_token_lines(texts, session.tokenizer.special, prompting.special_tokens, "prompts"),
                 *sampling_lines(session.checkpoint)):
        print(line, file=sys.stderr)
    if options.file:
        _answer_records(generator, options, records, asked)
    elif options.interactive:
        _converse(generator, options, talks)
    else:
        _print_one(generator, options, asked[0])
    return 0


def read_records(path: str) -> list[dict[str, Any]]:
    """The records of a JSON Lines file, each with `prompt`, with `messages`, or with `context` and `question`.

    Raises:
        UserError: the file cannot be read, or lines are not such records; all are counted.
    """
    offenders, found = Offenders(path), []
    for place, record in json_records(read_text(path), offenders):
        if not isinstance(record, dict):
            offenders.add(place, "a JSON object", record)
            continue
        if "messages" in record:
            conversation_to_answer(record, place, offenders)
        else:
            for key in ("prompt",) if "prompt" in record else ("context", "question"):
                if not is_text(record.get(key)) or not record[key].strip():
                    offenders.add(f"{place}, {key}", "text that is not empty", record.get(key, MISSING))
        found.append(record)
    offenders.check('Each line is {"prompt": …}, {"messages": […]} or {"context": …, "question": …}.')
    return found


def _asked(record: dict[str, Any], talks: bool, system: str | None) -> Asked:
    from jittor_lora.inference.asking import Prompt, Question, Talk
    if "messages" in record:
        return Talk(conversation_to_answer(record))
    if "prompt" in record:
        return Talk.opened(record["prompt"], system) if talks else Prompt(record["prompt"])
    return Question(record["context"], record["question"])


def _print_one(generator: Generator, options: GenerateOptions, asked: Asked) -> str:
    """Print the answer to what is asked, and return it: token by token on a terminal, as lines of JSON if there are
    several."""
    from jittor_lora.inference.asking import answers
    from jittor_lora.inference.readers import first_texts
    pieces = sys.stdout.isatty() and options.samples == 1

    with silence_explained(first_texts()) as first_piece:

        def show(_: int, piece: str) -> None:
            first_piece()
            if pieces:
                print(piece, end="", flush=True)

        texts = answers(generator, [asked], options.decoding_of(asked), options.samples, show)[0]
    whole = texts[0] if options.samples == 1 else "\n".join(json_text({"continuation": text}) for text in texts)
    print("" if pieces else whole, flush=True)
    return texts[0]


def _converse(generator: Generator, options: GenerateOptions, talks: bool) -> None:
    """Answer each line of standard input: a prompt, a question about the context, or a turn of a conversation, which
    an empty line starts anew."""
    from jittor_lora.inference.asking import Prompt, Question, Talk
    sys.stdin.reconfigure(errors="replace")
    talks = talks and options.context is None
    name = "You" if talks else "Prompt" if options.context is None else "Question"
    print("One per line; Ctrl-D ends." + (" An empty line starts a new conversation." if talks else ""),
          file=sys.stderr)
    said: tuple[Turn, ...] = ()
    while True:
        print(f"{name}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        text = line.rstrip("\n")
        if not text.strip():
            said = ()
            continue
        if talks:
            asked = Talk((*said, Turn(USER, text))) if said else Talk.opened(text, options.system)
        else:
            asked = Prompt(text) if options.context is None else Question(options.context, text)
        try:
            answer = _print_one(generator, options, asked)
        except UserError as error:  # of this line only, such as a prompt that is too long
            print(error, file=sys.stderr)
            continue
        if talks:
            said = (*asked.turns, Turn(ASSISTANT, answer))


def _answer_records(generator: Generator, options: GenerateOptions, records: list[dict[str, Any]],
                    asked: list[Asked]) -> None:
    """Print each record as a line of JSON with its `continuation`."""
    from jittor_lora.inference.asking import answers
    done = 0
    for _, same in itertools.groupby(zip(records, asked), lambda pair: type(pair[1])):
        alike = list(same)
        for first in range(0, len(alike), RECORDS_AT_A_TIME):
            some, their = zip(*alike[first : first + RECORDS_AT_A_TIME])
            for record, texts in zip(some, answers(generator, their, options.decoding_of(their[0]), options.samples)):
                found = {"continuation": texts[0]} if options.samples == 1 else {"continuations": texts}
                print(json_text({**record, **found}), flush=True)
            done += len(some)
            print(f"{done:,} of {len(records):,}", file=sys.stderr)
