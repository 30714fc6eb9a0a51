"""`jittor-lora inspect`: the tokens that training reads, and those that the loss counts."""

from __future__ import annotations

import argparse
import sys
from typing import Literal, Optional

from jittor_lora.cli.flags import add_flags, from_flags, require
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, Settings, setting
from jittor_lora.settings.shared import (
    DATA,
    LARGEST_SEED,
    ChatArguments,
    Columns,
    SpecialTokens,
    TemplateText,
    chat_arguments_setting,
    chat_template_setting,
    columns_setting,
    special_tokens_setting,
    template_setting,
)


class InspectOptions(Settings):
    base: str = setting("auto", "Model", "base model, for its tokenizer and maximum length", holds=PATH, min_length=1)

    data: Optional[str] = setting(None, DATA, "a file of conversations, prompts or questions (JSON, CSV, parquet), "
                                  "hub:organisation/name, or a name such as squad-train or sample-dev", holds=PATH,
                                  min_length=1)
    columns: Columns = columns_setting()
    max_train: Optional[int] = setting(None, DATA, "use a seeded subset of N examples; by default all", ge=1)
    template: TemplateText = template_setting(DATA, "text with {context}, {question} and {answer}, as in training")
    chat_template: Optional[str] = chat_template_setting(DATA, "the base's own")
    chat_arguments: ChatArguments = chat_arguments_setting(DATA)
    special_tokens: SpecialTokens = special_tokens_setting(DATA)
    prompt_loss_weight: float = setting(0.0, DATA, "weight of prompt tokens in the loss; answer tokens have 1", ge=0,
                                        le=1)
    max_tokens: Optional[int] = setting(None, DATA, "maximum length of an example in tokens; by default the model's",
                                        ge=8)
    batch_size: int = setting(8, DATA, "questions per batch, approximately", ge=1)
    seed: int = setting(42, DATA, "seed for subset and order", ge=0, le=LARGEST_SEED)

    batch: int = setting(1, "Output", "the batch of the first epoch to show; 0 for none", ge=0)
    color: Literal["auto", "always", "never"] = setting(
        "auto", "Output", "mark scored tokens by colour, or by [[ and ]]; auto: colour on a terminal")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "inspect", help="show a batch with its scored tokens, and counts",
        usage="jittor-lora inspect --base B --data FILE [any flag below]",
        description="Show one batch as training reads it, with every scored token marked, and counts, lengths, the "
                    "share of scored tokens, and the examples that were too long.")
    add_flags(parser, InspectOptions, required=("data",))


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, InspectOptions)
    require(options, "data")
    from jittor_lora.data.chat_faults import ChatFaults, fault_lines
    from jittor_lora.data.check import duplicates, notes, obstacles
    from jittor_lora.data.examples import training_groups
    from jittor_lora.data.prompting import Choices
    from jittor_lora.data.report import (
        BRACKETS,
        COLOURS,
        EpochSize,
        batch_lines,
        describe_data,
        length_table,
        roles,
        turn_ends,
    )
    from jittor_lora.data.sources import load_data
    from jittor_lora.data.stream import batches
    from jittor_lora.formats.bases import load_base, resolve_base
    from jittor_lora.formats.prompting_choice import base_prompting, chosen_prompting, encoder_of

    data = load_data(options.data, columns=options.columns)
    if options.max_train is not None:
        data = data.subset(options.max_train, options.seed)
    base = resolve_base(options.base)
    checkpoint, tokenizer = load_base(base)
    prompting = chosen_prompting(base_prompting(base, tokenizer), tokenizer, Choices.of(options))
    chat = encoder_of(prompting, tokenizer, data, base.name)
    limit = min(checkpoint.config.max_positions, options.max_tokens or checkpoint.config.max_positions)
    facts = [f"data: {data.path}: {describe_data(data)}",
             f"base: {base.description}; tokenizer of {tokenizer.vocab_size:,} tokens",
             *(turn_ends(chat, tokenizer) if chat else ())]
    try:
        groups, lengths = training_groups(data, tokenizer, prompting.template, limit, chat)
    except ChatFaults as error:
        print(*facts, *_listed(fault_lines(error.faults)), sep="\n")
        return 1
    epoch = batches(groups, options.batch_size, options.seed, epoch=0)
    coloured = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
    if options.batch > len(epoch):
        raise UserError(f"--batch {options.batch}: the first epoch has {len(epoch):,} batches.")
    print(*facts, sep="\n")
    if options.batch:
        print(f"\nbatch {options.batch:,} of {len(epoch):,}")
        marks = COLOURS if coloured else BRACKETS
        print(*batch_lines(epoch[options.batch - 1], tokenizer, options.prompt_loss_weight, marks, roles(data)),
              sep="\n")
    print()
    ends = tokenizer.end_ids if chat is None else chat.end_ids
    print(*length_table(groups), "", *lengths.lines(), *EpochSize.of(epoch, ends).lines(), sep="\n")
    meaning = "unknown" if options.origin("special_tokens") == "default" else options.special_tokens
    found = [*obstacles(data, lengths, tokenizer.special, meaning), *duplicates(data)]
    for line in (*notes(data, lengths, tokenizer.special, meaning), *_listed(found)):
        print(line)
    return 1 if found else 0


def _listed(problems: list[str]) -> list[str]:
    """What is to be put right before training."""
    return ["", "To be put right before training:", *(f"- {line}" for line in problems)] if problems else []
