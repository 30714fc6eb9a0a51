"""Tokens and masks of conversations are those of transformers' `apply_chat_template`.

The templates in tests/data/chat_templates mark with {% generation %} what must be scored; our rule does not look at
these marks, transformers' mask does.

A special token that a text spells out must stay text. The reference for that is transformers itself with another
tokenizer: the same one with its special tokens renamed, in tokenizer.json and in the template. For it the letters that
a hostile text spells out are nothing special, whole or in halves, in the middle of a text or at its edges.
"""

from __future__ import annotations

import pytest
import transformers

import chats
from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.formats.bases import SMOLLM2, cache_folder
from jittor_lora.formats.chat_template import base_chat_template
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.smollm2 import MEMBER

QWEN, GPT2, SENTENCEPIECE, LLAMA = ("byte-level, Llama-3's words", "byte-level", "metaspace, first", "llama")
USUAL = {"gpt2": GPT2, "alpaca": GPT2, "llama2": LLAMA, "mistral": SENTENCEPIECE, "zephyr": LLAMA, "phi3": LLAMA,
         "gemma": SENTENCEPIECE}
OTHER = {QWEN: SENTENCEPIECE, GPT2: LLAMA, LLAMA: QWEN, SENTENCEPIECE: GPT2}
CASES = [(name, {}) for name in chats.TEMPLATES] + [("qwen3", {"enable_thinking": False}),
                                                    ("llama3.2", {"date_string": "26 Jul 2024"})]
MODEL = cache_folder() / MEMBER.split("/")[-1]


class Theirs:
    """transformers' tokenizer with a template, as it is or with the special tokens renamed."""

    def __init__(self, kind: str, source: str, arguments: dict, rename: bool):
        made, new = chats.renamed(kind) if rename else (chats.backend(kind), {})
        named = {name: new.get(token, token) for name, token in chats.TOKENS.items()}
        self._tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, chat_template=chats.respelled(source, new), **named)
        self._arguments = arguments

    def ids(self, turns, prompt: bool = False) -> list[int]:
        return self._tokenizer.apply_chat_template(chats.messages(turns), add_generation_prompt=prompt,
                                                   return_dict=True, **self._arguments)["input_ids"]

    def scored(self, turns) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids, ranges of the mask)."""
        found = self._tokenizer.apply_chat_template(chats.messages(turns), return_dict=True,
                                                    return_assistant_tokens_mask=True, **self._arguments)
        mask = [0, *found["assistant_masks"], 0]
        edges = [i for i in range(len(mask) - 1) if mask[i] != mask[i + 1]]
        return found["input_ids"], list(zip(edges[::2], edges[1::2]))


def check(ours: ChatEncoder, theirs: Theirs, conversation, rewrites: bool) -> None:
    turns = conversation.turns
    chats_found, faults = ours.try_training(conversation)
    assert not faults, (turns, faults)
    # Each answer, as the last turn, in the context in which it is generated.
    expected = []
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            ids, ranges = theirs.scored(turns[: i + 1])
            expected.append((ids[: ranges[-1][1]], ranges[-1]))
    found = [(chat.ids[:end], (start, end)) for chat in chats_found for start, end in chat.scored]
    assert found == expected, turns
    assert chats_found[-1].ids == theirs.ids(turns)
    if not rewrites:
        assert [(chat.ids, chat.scored) for chat in chats_found] == [theirs.scored(turns)], turns
    assert ours.prompt(conversation.question) == theirs.ids(conversation.question, prompt=True), turns


@pytest.mark.parametrize("usual", [True, False], ids=["usual tokenizer", "other tokenizer"])
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_tokens_and_masks(name, arguments, usual):
    kind = USUAL.get(name, QWEN) if usual else OTHER[USUAL.get(name, QWEN)]
    count = 100 if usual else 15
    source = chats.source(name)
    ours = ChatEncoder(chats.tokenizer(kind), chats.template(name, **arguments))
    options = {"system": name not in chats.WITHOUT_SYSTEM, "thoughts": name in ("qwen3", "deepseek") and not arguments}
    plain, renamed = (Theirs(kind, source, arguments, rename) for rename in (False, True))
    for conversation in chats.made_up(1, count, hostile=False, **options):
        check(ours, plain, conversation, name == "qwen3")
    for conversation in chats.made_up(2, count, hostile=True, **options):
        check(ours, renamed, conversation, name == "qwen3")


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_special_tokens_that_are_meant(name):
    """With special_tokens "token", what a text spells out is read as transformers reads it by default."""
    ours = ChatEncoder(chats.tokenizer(QWEN, "token"), chats.template(name))
    theirs = Theirs(QWEN, chats.source(name), {}, rename=False)
    for conversation in chats.made_up(3, 50, hostile=True):
        assert ours.prompt(conversation.question) == theirs.ids(conversation.question, prompt=True)
        assert ours.training(conversation)[-1].ids == theirs.ids(conversation.turns)


@pytest.mark.skipif(not MODEL.is_file(), reason=f"{SMOLLM2} is not in the cache (jittor-lora quickstart fetches it)")
def test_smollm2s_own():
    tokenizer = gguf_tokenizer(GgufFile(MODEL))
    template = base_chat_template(MODEL, tokenizer)
    ours = ChatEncoder(tokenizer, template)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._backend, **template.tokens)
    theirs.backend_tokenizer.encode_special_tokens = False
    marked = transformers.PreTrainedTokenizerFast(tokenizer_object=theirs.backend_tokenizer,
                                                  chat_template=chats.source("smollm2"), **template.tokens)
    for conversation in chats.made_up(4, 200, hostile=False):
        messages = chats.messages(conversation.turns)
        expected = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        own = theirs.apply_chat_template(messages, chat_template=template.source, return_dict=True)
        assert own["input_ids"] == expected["input_ids"]
        (chat,) = ours.training(conversation)
        mask = [0] * len(chat.ids)
        for start, end in chat.scored:
            mask[start:end] = [1] * (end - start)
        assert (chat.ids, mask) == (expected["input_ids"], expected["assistant_masks"])
