from __future__ import annotations

import json

import pytest

import tokenizer_kinds
from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.conversations import Conversation, Turn
from jittor_lora.data.named_templates import NAMED
from jittor_lora.errors import UserError
from jittor_lora.formats.chat_template import base_chat_template, chosen_chat_template
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_tokenizer import gguf_tokenizer
from jittor_lora.formats.tokenizer import read_tokenizer
from model_files import GPT2, make_gguf, make_tensors

TURNS = (Turn("system", "Be brief. "), Turn("user", " hi"), Turn("assistant", "ho "), Turn("user", "and"),
         Turn("assistant", "so"))


@pytest.fixture
def folder(tmp_path):
    made = tokenizer_kinds.make("byte-level", "begin")
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                             "<start_of_turn>", "<end_of_turn>"])
    return tokenizer_kinds.save(tmp_path, made, pad_token={"content": "<pad>", "special": True}, sep_token=None)


def configure(folder, **settings) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def found(folder, **arguments):
    return base_chat_template(folder, read_tokenizer(folder), arguments)


def test_none(folder):
    assert found(folder) is None


def test_in_the_configuration(folder):
    configure(folder, chat_template="{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ sep_token }}{{ a }}é\n")
    template = found(folder, a=1)
    assert template.render(TURNS) == "<s></s><pad>1é"
    assert template.origin == str(folder / "tokenizer_config.json")
    assert (template.tokens["unk_token"], template.arguments) == ("<unk>", {"a": 1})


def test_the_default_of_several(folder):
    configure(folder, chat_template=[{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "x"}])
    assert found(folder).source == "x"


def test_a_file_comes_first(folder):
    configure(folder, chat_template="config")
    (folder / "chat_template.jinja").write_text("{{ 'file' }}")
    assert (found(folder).source, found(folder).origin) == ("{{ 'file' }}", str(folder / "chat_template.jinja"))


@pytest.mark.parametrize(("value", "words"), [
    (1, "expected a text, or a list of names with templates; found int"),
    (["x"], "found list"),
    ([{"name": "rag", "template": "x"}], "expected a template named default; found rag"),
    ([], "found none"),
    ([{"name": "default", "template": 1}], "expected a template named default"),
    ([{"template": "x"}], "expected a template named default"),
    ("x" * 600_000, "at most 524,288 characters; found 600,000"),
])
def test_malformed(folder, value, words):
    configure(folder, chat_template=value)
    with pytest.raises(UserError) as caught:
        found(folder)
    assert str(caught.value).startswith(f"{folder / 'tokenizer_config.json'}: ") and words in str(caught.value)


def test_files_that_are_no_templates(folder, tmp_path):
    (folder / "chat_template.jinja").write_bytes("北京".encode("gbk"))
    with pytest.raises(UserError, match=r"chat_template.jinja: expected a chat template in UTF-8; found the byte 0xb1"):
        found(folder)
    (folder / "chat_template.jinja").write_bytes(b"x" * (1 << 22))
    with pytest.raises(UserError, match="at most 2,097,152 bytes"):
        found(folder)


def test_in_a_gguf_file(tmp_path):
    plain, chat = tmp_path / "plain.gguf", tmp_path / "chat.gguf"
    make_gguf(plain, GPT2, make_tensors(GPT2))
    make_gguf(chat, GPT2, make_tensors(GPT2), changed={"tokenizer.chat_template": "{{ eos_token }}"})
    for path, expected in ((plain, None), (chat, "<|endoftext|>")):
        template = base_chat_template(path, gguf_tokenizer(GgufFile(path)))
        assert (template and template.render(TURNS)) == expected
    assert template.origin == str(chat)


EXPECTED = {
    "chatml": "<s><|im_start|>system\nBe brief. <|im_end|>\n<|im_start|>user\n hi<|im_end|>\n"
              "<|im_start|>assistant\nho <|im_end|>\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\nho<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nand<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nhi [/INST] ho</s>[INST] and [/INST]",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n<start_of_turn>model\nho<end_of_turn>\n"
             "<start_of_turn>user\nand<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<s><|system|>\nBe brief. </s>\n<|user|>\n hi</s>\n<|assistant|>\nho </s>\n<|user|>\nand</s>\n"
              "<|assistant|>\n",
    "vicuna": "<s>Be brief. USER: hi ASSISTANT: ho</s> USER: and ASSISTANT:",
    "alpaca": "<s>Be brief.\n\n### Instruction:\nhi\n\n### Response:\nho</s>\n\n### Instruction:\nand\n\n"
              "### Response:\n",
    "gpt2": "<s>System: Be brief.\nUser: hi\nAssistant: ho</s>\nUser: and\nAssistant:",
}


@pytest.mark.parametrize("name", NAMED)
def test_named(folder, name):
    tokenizer = read_tokenizer(folder)
    template = chosen_chat_template(name, tokenizer)
    assert template.origin == name and template.render(TURNS[:4], True) == EXPECTED[name]
    encoder = ChatEncoder(tokenizer, template)
    assert [len(chat.scored) for chat in encoder.training(Conversation("1", TURNS))] == [2]
    assert [len(chat.scored) for chat in encoder.training(Conversation("1", TURNS[1:]))] == [2]
    assert len(encoder.end_ids) == 1
    # A plain prompt without a system follows from the turn as it is trained.
    assert template.render(TURNS[1:3]).startswith(template.render(TURNS[1:2], True))


def test_named_templates_write_a_begin_of_text_only_where_the_tokenizer_does(tmp_path):
    tokenizer = read_tokenizer(tokenizer_kinds.save(tmp_path, tokenizer_kinds.make("byte-level")))
    assert chosen_chat_template("gpt2", tokenizer).render(TURNS[1:2], True) == "User: hi\nAssistant:"


def test_alpaca_without_a_system_is_stanfords(folder):
    assert chosen_chat_template("alpaca", read_tokenizer(folder)).render(TURNS[1:2], True) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nhi\n\n### Response:\n")


def test_by_path(folder, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ eos_token }}{{ x }}")
    template = chosen_chat_template(str(tmp_path / "mine.jinja"), read_tokenizer(folder), {"x": "y"})
    assert template.render(TURNS) == "</s>y"
    with pytest.raises(UserError, match="chatMl: no such chat template. Did you mean chatml[?] Expected one of chatml"):
        chosen_chat_template("chatMl", read_tokenizer(folder))
    with pytest.raises(UserError, match="expected a regular file; found a folder"):
        chosen_chat_template(str(tmp_path), read_tokenizer(folder))
