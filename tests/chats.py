"""Chat templates as data, small tokenizers that know their special tokens, and conversations made to confuse both."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

import tokenizer_kinds
from jittor_lora.data.chat_template import ChatTemplate
from jittor_lora.data.conversations import ASSISTANT, SYSTEM, USER, Conversation, Turn
from jittor_lora.formats.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "data" / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
WITHOUT_SYSTEM = ("gemma", "mistral")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
           "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>",
           "<｜end▁of▁sentence｜>"]
ORDINARY = ["<think>", "</think>"]  # added, not special: they mean the same in any text
_PLAIN = ["the town", " has", "ten houses", "?", "\n", "\n\n", "  ", "\t", "什么是首都？", "北京。", "🎉",
          "👩\u200d👩\u200d👧", "e\u0301", "é", "İ", "\u200b", "don't", "12345",
          "{{ x }}", "{% if a %}", "{#", "}}", "[INST]", " [/INST]", "User:",
          "### Response:\n", "<", ">", "|", "assistant\n", "\ue000", "'", '"', "\\n", "null", "a" * 40]


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def backend(kind: str) -> Backend:
    made = tokenizer_kinds.make(kind)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    return made


def tokenizer(kind: str = "byte-level, Llama-3's words", meaning: str = "text") -> Tokenizer:
    made = Tokenizer(backend(kind), TOKENS, kind, None)
    made.special_tokens = meaning
    return made


def template(name: str, **arguments) -> ChatTemplate:
    return ChatTemplate(source(name), name, TOKENS, arguments)


def conversation(*texts: str, system: str | None = None, unscored: tuple[int, ...] = ()) -> Conversation:
    """Texts of a user and an assistant in turn."""
    turns = [Turn((USER, ASSISTANT)[i % 2], text, i not in unscored) for i, text in enumerate(texts)]
    return Conversation("1", tuple(turns if system is None else [Turn(SYSTEM, system), *turns]))


def made_up(seed: int, count: int, hostile: bool, system: bool = True, thoughts: bool = False) -> list[Conversation]:
    """Conversations of one to five questions and answers.

    Args:
        hostile: texts spell out special tokens, whole and in halves, also so that neighbouring texts complete them.
        thoughts: some answers show what was thought, as Qwen3's do.
    """
    chance = random.Random(seed)
    spelled = [*TOKENS.values(), *SPECIAL, "<unk>"]
    halves = [token[:cut] for token in spelled for cut in (1, len(token) // 2, len(token) - 1)]
    halves += [token[cut:] for token in spelled for cut in (1, len(token) // 2, len(token) - 1)]

    def text() -> str:
        pieces = chance.choices(_PLAIN, k=chance.choice((1, 1, 2, 4, 8)))
        if hostile:
            pieces += chance.choices(spelled, k=chance.randrange(3)) + chance.choices(halves, k=chance.randrange(3))
            chance.shuffle(pieces)
        return "".join(pieces)

    def answer() -> str:
        found = text()
        return f"<think>\n{text()}\n</think>\n\n{found}" if thoughts and chance.random() < 0.4 else found

    found = []
    for number in range(count):
        turns = [turn for _ in range(chance.randint(1, 5)) for turn in (Turn(USER, text()), Turn(ASSISTANT, answer()))]
        if system and chance.random() < 0.5:
            turns.insert(0, Turn(SYSTEM, chance.choice(("", text()))))
        found.append(Conversation(str(number), tuple(turns)))
    return found


def messages(turns) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def renamed(kind: str) -> tuple[Backend, dict[str, str]]:
    """The tokenizer with its special tokens spelled otherwise, and their new spellings.

    To it, what the texts spell out are ordinary letters.
    """
    new = {token: f"\ufdd0{number}\ufdd1" for number, token in enumerate([*tokenizer_kinds.SPECIAL, *SPECIAL])}
    content = json.loads(backend(kind).to_str())
    for token in content["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    content["model"]["vocab"] = {new.get(token, token): i for token, i in content["model"]["vocab"].items()}
    if content["model"].get("unk_token"):
        content["model"]["unk_token"] = new[content["model"]["unk_token"]]
    return Backend.from_str(json.dumps(content)), new


def respelled(text: str, new: dict[str, str]) -> str:
    for token in sorted(new, key=len, reverse=True):
        text = text.replace(token, new[token])
    return text
