"""Findings of fuzzing and of code review: each is refused at once with a `UserError`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from fuzz.case import Odd, lay
from fuzz.readers import READERS
from fuzz.seeds import SETTINGS, seeds, with_sum
from jittor_lora.data.sources import load_data
from jittor_lora.errors import LONGEST_MESSAGE, UserError
from jittor_lora.evaluation.loss_logs import read_loss_files
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.bases import resolve_base
from jittor_lora.formats.training_state import write_state
from jittor_lora.settings.curve import CurveConfig
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.run_folder import refuse_a_run, refuse_links

SECONDS = 3.0
SEEDS = seeds()
NAME = "base_model.model.transformer.h.0.attn.c_attn"


def refused(reader: str, folder: Path, changed: dict) -> str:
    """The message with which a reader refuses its seed with some files changed."""
    lay({**SEEDS[reader], **changed}, folder)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        READERS[reader](folder)
    assert time.process_time() - began < SECONDS
    message = str(caught.value)
    assert str(folder) in message and len(message) <= LONGEST_MESSAGE + 100
    assert all(character.isprintable() or character == "\n" for character in message)
    return message


def changed_json(reader: str, name: str, **values: object) -> dict[str, bytes]:
    return {name: json.dumps({**json.loads(SEEDS[reader][name]), **values}).encode()}


# --- files that are not regular --------------------------------------------------------------------------------------

PLACES = [("recipe", "recipe.yaml"), ("predictions", "run/evaluation/adapter/predictions.json"),
          ("metrics", "metrics.json"), ("losses", "train.txt"), ("log", "metrics.jsonl"), ("log", "run.log"),
          ("state", "step-00000002.safetensors"), ("summary", "summary.json"), ("squad", "data.json"),
          ("adapter", "adapter_model.safetensors"), ("gguf", "model.gguf"), ("npz", "weights.npz"),
          ("base", "config.json"), ("tokenizer", "tokenizer.json")]


@pytest.mark.parametrize("odd", [Odd("fifo"), Odd("link", "/dev/zero"), Odd("sparse", size=1 << 40)],
                         ids=["pipe", "device", "terabyte"])
@pytest.mark.parametrize("reader, name", PLACES, ids=[f"{reader}-{name}" for reader, name in PLACES])
def test_pipes_devices_and_endless_files(tmp_path, reader, name, odd):
    """Pipes were waited for, /dev/zero and sparse files read until out of memory."""
    refused(reader, tmp_path / "case", {name: odd})


def test_a_folder_in_place_of_a_checkpoint_is_skipped(tmp_path):
    (tmp_path / "step-00000001.safetensors").mkdir()
    from fuzz.seeds import _state

    for step in (2, 3):
        write_state(tmp_path, step, _state(), keep=1)
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


# --- numbers, nesting, text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader, name, text", [
    ("metrics", "metrics.json", '{"exact_match": 1%s, "f1": 1}' % ("0" * 400)),
    ("run", "metrics.jsonl", '{"step": 1%s, "train_loss": 3.5}\n' % ("0" * 400)),
    ("run", "metrics.jsonl", '{"step": 1, "train_loss": 1%s}\n' % ("0" * 400)),
    ("log", "metrics.jsonl", '{"step": 1e999, "train_loss": 3.5}\n'),
    ("log", "metrics.jsonl", "[" * 100_000 + "\n"),
    ("base", "config.json", '{"model_type": "gpt2", "layer_norm_epsilon": 1%s}' % ("0" * 400)),
    ("base", "config.json", '{"model_type": %s}' % ("[" * 900 + "]" * 900)),
    ("hub", "config.json", "[" * 100_000),
    ("summary", "summary.json", "[" * 100_000),
    ("summary", "summary.json", "\xff"),
    ("summary", "summary.json", '{"steps": 4}'),
    ("summary", "summary.json", '{"steps": 4, "seconds": "x", "trainable_parameters": 9, "train_loss": []}'),
    ("tokenizer", "tokenizer_config.json", r'{"eos_token": "\ud800"}'),
    ("hub", "model.safetensors.index.json", '{"weight_map": {"a": "%s"}}' % ("x" * 300)),
    ("tokenizer", "tokenizer.json", '{"added_tokens": [{"content": [], "id": {}}]}'),
    ("recipe", "recipe.yaml", r'"\ud800": 1'),
    ("recipe", "recipe.yaml", r'base: "\UFFFFFFFF"'),
    ("recipe", "recipe.yaml", r'base: "\U00110000"'),
    ("recipe", "recipe.yaml", "%YAML 1." + "9" * 5000 + "\n---\nbase: x\n"),
])
def test_numbers_nesting_and_escapes(tmp_path, reader, name, text):
    refused(reader, tmp_path / "case", {name: text.encode("latin-1")})


def test_invalid_notes_in_the_users_folders_are_ignored(tmp_path):
    lay({**SEEDS["caches"], "SmolLM2-135M-Instruct.Q4_1.gguf.json": b"[" * 100_000,
         ".cache/jittor/config.json": b"[" * 100_000}, tmp_path / "case")
    READERS["caches"](tmp_path / "case")


def test_a_message_cannot_control_the_terminal(tmp_path):
    error = UserError("a: \x1b[2J\x00 \u202e \ud800 \ufefe \ue000 é 北\u3000\u00a0🎉\n\tb")
    assert str(error) == "a: \\x1b[2J\\x00 \\u202e \\ud800 \\ufefe \\ue000 é 北\u3000\u00a0🎉\n\tb"
    assert len(str(UserError("x" * 10**6))) < LONGEST_MESSAGE + 20


def test_settings_with_non_text_names_are_listed_with_the_others():
    with pytest.raises(UserError) as caught:
        RunConfig(**{"\ud800": 1, "lora_r": "x", "unknown": 2})
    for text in ("3 settings", "\\ud800: no such", "lora_r: ", "unknown: "):
        assert text in str(caught.value)


def test_a_point_of_a_curve_with_more_digits_than_an_int_has():
    with pytest.raises(UserError, match="points"):
        CurveConfig(points="9" * 5000)
    with pytest.raises(UserError, match="points: ranks are at most 4096"):
        CurveConfig(over="rank", points="4,65536")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-that-name/base", "a/" * 3000, "~\0/base", "~\ud800/base"])
def test_a_base_with_a_name_no_file_system_allows(tmp_path, name):
    """An adapter can give its base any name."""
    with pytest.raises(UserError, match="no such"):
        resolve_base(name, cache=tmp_path)


@pytest.mark.parametrize("name, message", [("~\0/base", "control character"), ("~\ud800/base", "text in UTF-8")])
def test_the_home_folder_of_an_impossible_user_name(name, message):
    with pytest.raises(UserError, match=message):
        RunConfig(base=name)


def test_adapters_that_overflow_when_combined(tmp_path):
    from safetensors.numpy import load, save

    given = load(SEEDS["adapter"]["adapter_model.safetensors"])
    arrays = {name: np.full_like(array, 3e38) for name, array in given.items()}
    assert "not finite" in refused("adapters", tmp_path / "case", {"a/adapter_model.safetensors": save(arrays)})


def test_a_quantised_tensor_without_dimensions(tmp_path):
    data = bytearray(SEEDS["gguf"]["model.gguf"])
    at = data.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight")
    data[at : at + 20] = bytes(4)  # number of dimensions, and two dimensions
    refused("gguf", tmp_path / "case", {"model.gguf": bytes(data)})


# --- too slow --------------------------------------------------------------------------------------------------------


def test_countless_dimensions(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**63 - 1] * 50_000, "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    assert "at most 32 dimensions" in refused("base", tmp_path / "case", {"model.safetensors": data})


def test_a_duplicate_key_among_many(tmp_path):
    keys = ",".join(f'"{i}":1' for i in range(100_000))
    text = f'{{{keys},"99999":2}}'.encode()
    assert "'99999' occurs twice" in refused("adapter", tmp_path / "case", {"adapter_config.json": text})


@pytest.mark.parametrize("pattern", ["a?" * 28 + "a" * 28, "(a|aa)" * 60 + "b"], ids=["options", "choices"])
def test_patterns_with_too_many_ways(tmp_path, pattern):
    for name in ("target_modules", "exclude_modules"):
        changed = changed_json("adapter", "adapter_config.json", **{name: pattern})
        assert "regular expression" in refused("adapter", tmp_path / "case", changed)
    with pytest.raises(UserError, match="target_modules: "):
        RunConfig(target_modules=pattern)


def test_a_pattern_of_a_recipe_is_one_that_an_adapter_may_have():
    with pytest.raises(UserError, match="within repetitions"):
        RunConfig(target_modules="(a+)+$")


def test_patterns_on_long_names(tmp_path):
    from safetensors.numpy import save

    module = "base_model.model." + ".".join(["aaaa"] * 40)
    arrays = {f"{module}.lora_{part}.weight": np.ones(shape, np.float32)
              for part, shape in (("A", (2, 4)), ("B", (4, 2)))}
    patterns = {f".*.*.*.*{i}": 4 for i in range(20)}
    changed = changed_json("adapter", "adapter_config.json", rank_pattern=patterns)
    message = refused("adapter", tmp_path / "case", {**changed, "adapter_model.safetensors": save(arrays)})
    assert ("rank_pattern: expected patterns that take at most 300 million steps to match, found 54,949 million"
            in message)


def test_many_names_are_looked_up_fast(tmp_path):
    """The largest number allowed."""
    pattern = {f"layer{i}.x": 4 for i in range(2000)}
    lay({**SEEDS["load_adapter"], **changed_json("load_adapter", "adapter_config.json", alpha_pattern=pattern,
                                                 modules_to_save=[f"m{i}" for i in range(1000)])}, tmp_path / "case")
    READERS["load_adapter"](tmp_path / "case")  # built once
    began = time.process_time()
    READERS["load_adapter"](tmp_path / "case")
    assert time.process_time() - began < SECONDS


def test_a_group_in_the_pattern_of_layers(tmp_path):
    """It was searched for the block number."""
    lay({**SEEDS["load_adapter"], **changed_json("load_adapter", "adapter_config.json", layers_pattern="(h)")},
        tmp_path / "case")
    READERS["load_adapter"](tmp_path / "case")


@pytest.mark.parametrize("line", ["loss" * 20_000, "train" * 20_000, "(1" + ")" * 50_000, "1" * 50_000 + "x",
                                  "loss:" + " " * 50_000, "step" * 400 + "loss" * 90, "tensor(1" + " " * 1000 + "x"],
                         ids=lambda line: f"{line[:6]}-{len(line)}")
def test_log_lines_that_took_polynomial_time(tmp_path, line):
    path = tmp_path / "loss.txt"
    path.write_text(f"{line}\n" * 20)
    began = time.process_time()
    with pytest.raises(UserError, match="no loss recognised in any of its 20 lines"):
        read_loss_files(path)
    assert time.process_time() - began < SECONDS


def test_consecutive_records_take_linear_time(tmp_path):
    """Each record used to copy the rest of the file."""
    path = tmp_path / "data.jsonl"
    row = '{"prompt":\n"%d ' + "a" * 200 + '", "completion": "b"}\n'
    path.write_text("".join(row % number for number in range(40_000)))
    began = time.process_time()
    assert len(load_data(str(path)).prompts) == 40_000
    assert time.process_time() - began < SECONDS


def test_losses_near_the_largest_float_are_not_drawn(tmp_path, capsys):
    from jittor_lora.cli.main import main

    (tmp_path / "loss.txt").write_text("1,1e308\n2,-1e308\n3,1e308\n")
    assert main(["plot", "--train-loss", str(tmp_path / "loss.txt"), "--output", str(tmp_path / "x.png")]) == 2
    assert "1.0e+308" in capsys.readouterr().err and not (tmp_path / "x.png").exists()


# --- zip and npy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["-" * 4000 + "1", "(" * 4000, "{'descr': '<f4'", "{1: 2, 'a': 3}", "'''", "{**{}}"])
def test_headers_of_arrays_that_the_library_cannot_parse(tmp_path, header):
    import io
    import zipfile

    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("transformer_h.0.mlp.c_fc.lora_A.weight.npy", content)
    refused("npz", tmp_path / "case", {"weights.npz": stream.getvalue()})


def test_a_zip_whose_directory_lies_before_its_start(tmp_path):
    data = bytearray(SEEDS["npz"]["weights.npz"])
    at = data.rfind(b"PK\x01\x02")
    data[at + 42 : at + 46] = b"\xfe\xff\xff\xff"  # offset of the member
    refused("npz", tmp_path / "case", {"weights.npz": bytes(data)})


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed, told", [
    ({"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}}, "at most 1,000 times as long"),
    ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "at most 64 characters"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
     "within repetitions"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9,
                         "pair": [], "special_tokens": {}}}, "contains the text once"),
    ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"}, "added_tokens": []}, "fails at a text"),
])
def test_steps_of_a_tokenizer(tmp_path, changed, told):
    changed = {**changed_json("tokenizer", "tokenizer.json", **changed), "tokenizer_config.json": b"{}",
               "special_tokens_map.json": b"{}"}
    assert told in refused("tokenizer", tmp_path / "case", changed)


def test_the_steps_of_known_tokenizers_are_accepted(tmp_path):
    """Llama 3's expression, Llama 2's normalizer."""
    expression = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    lay({**SEEDS["tokenizer"], **changed_json(
        "tokenizer", "tokenizer.json",
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})},
        tmp_path / "case")
    READERS["tokenizer"](tmp_path / "case")


# --- runs ------------------------------------------------------------------------------------------------------------


def _checkpoint(**values: object) -> dict[str, bytes]:
    """The seed's checkpoint with changed values and a correct checksum; None removes one."""
    name = "step-00000002.safetensors"
    data = SEEDS["state"][name]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    held = {**json.loads(header["__metadata__"]["values"]), **values}
    header["__metadata__"]["values"] = json.dumps({key: value for key, value in held.items() if value is not None})
    made = json.dumps(header, separators=(",", ":")).encode()
    return {name: with_sum(len(made).to_bytes(8, "little") + made + data[8 + length :])}


@pytest.mark.parametrize("values, told", [
    ({"settings": None}, "settings: expected an object"),
    ({"settings": {"unknown": 1}}, "no such setting"),
    ({"threads": None, "progress": 3}, "threads: expected a whole number from 1"),
    ({"threads": "1"}, "threads: expected"),
    ({"base": 3}, "base: expected text"),
    ({"system": []}, "system: expected an object"),
    ({"progress": {"step": 2}}, "progress: expected best_loss"),
    ({"progress": {"step": "2", "train_loss": [], "validation_loss": None, "best_loss": None, "best_step": -1,
                   "validations_since_best": 0}}, "best_step: expected a whole number"),
])
def test_invalid_values_in_a_checkpoint_with_the_right_checksum(tmp_path, values, told):
    assert told in refused("state", tmp_path / "case", _checkpoint(**values))


def test_a_checkpoint_without_the_optimisers_moments(tmp_path):
    data = SEEDS["state"]["step-00000002.safetensors"].replace(b'"second.', b'"thirds.')
    message = refused("state", tmp_path / "case", {"step-00000002.safetensors": with_sum(data)})
    assert message.count("second.") == 4 and "found nothing" in message


def test_pictures_of_a_run_are_not_written_through_links(tmp_path, capsys):
    from jittor_lora.cli.main import main

    lay(SEEDS["run"], tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "plots").symlink_to(tmp_path / "outside")
    assert main(["plot", str(tmp_path / "run")]) == 2
    assert "plots (to " in capsys.readouterr().err and not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("name", ["run.log", "checkpoints", "adapter", "config.yaml"])
def test_a_run_does_not_write_through_links(tmp_path, name):
    """A dangling link did not count as a file of a run, and links in a resumed run were followed."""
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"already holds a run .{name}"):
        refuse_a_run(run)
    with pytest.raises(UserError, match=f"{name} .to .*outside"):
        refuse_links(run)
    assert not (tmp_path / "outside").exists()


def test_a_lock_is_not_taken_through_links(tmp_path):
    from jittor_lora.system.locks import LOCK_FILE, locked

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="cannot be opened"), locked(tmp_path / "run"):
        pass
    assert not os.path.lexists(tmp_path / "outside")


def test_the_names_of_a_hostile_adapter_are_short(tmp_path):
    from safetensors.numpy import save

    lay({**SEEDS["adapter"], "adapter_model.safetensors": save({f"{NAME}.{'a' * 300}": np.ones(2, np.float32)})},
        tmp_path / "case")
    with pytest.raises(UserError, match="at most 256 characters"):
        read_adapter_folder(tmp_path / "case")


def test_the_seeds_are_read():
    assert SETTINGS.lora_r == 2 and SEEDS.keys() == READERS.keys()
