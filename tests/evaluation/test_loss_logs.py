from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.evaluation.loss_logs import read_loss_files, read_run_losses


def read(tmp_path, text, validation=None):
    """The curves of one log, or of one for training and one for validation."""
    paths = [tmp_path / "loss.txt", *([] if validation is None else [tmp_path / "val.txt"])]
    for path, content in zip(paths, (text, validation)):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_loss_files(*paths)


def points(series):
    return list(zip(series.steps.tolist(), series.losses.tolist()))


@pytest.mark.parametrize("line, unit, at, loss", [
    ("3.21", "order", 1, 3.21),
    (" +1e-3\r", "order", 1, 0.001),
    ("10,3.21", "step", 10, 3.21),
    ("10\t3.21", "step", 10, 3.21),
    ("Epoch 1, Step 10, Loss: 3.21", "step", 10, 3.21),
    ("Epoch [1/3], Step [10/402], Loss: 3.21", "step", 10, 3.21),
    ("[epoch 1] iter 10 | lr 1e-4 | ms/batch 7.5 | loss 3.21 | ppl 24.8", "iteration", 10, 3.21),
    ("{'loss': 3.21, 'step': 10}", "step", 10, 3.21),
    ("step=10 train/loss=3.21 val/loss=9.9", "step", 10, 3.21),
    ("step 1,000 | loss 3.21", "step", 1000, 3.21),
    ("Loss at step 10: 3.21", "step", 10, 3.21),
    ("10:00:03 INFO trainer - global_step: 10 - train_loss: 3.21 (0.16s/step)", "step", 10, 3.21),
    ("2025-01-02 10:00:03,000 - exp - INFO - 步骤 10/402 - 训练损失: 3.210000 - 步骤耗时: 0.16秒", "step", 10, 3.21),
    ('2025-01-02 10:00:03,000 - exp - INFO - {"step": 10, "loss": 3.21, "step_time": 0.76}', "step", 10, 3.21),
    ('INFO {"\\u6b65\\u9aa4": 10, "\\u8bad\\u7ec3\\u635f\\u5931": 3.21}', "step", 10, 3.21),
    ("第 1 轮，第 10 步，损失3.21，耗时 0.5 秒", "step", 10, 3.21),
    ("Train Epoch: 0 [10/60000 (0%)]\tLoss: 3.21", "count", 10, 3.21),
    ("\x1b[1m10/100\x1b[0m ━━━━ \x1b[1m1s\x1b[0m 5ms/step - loss: 3.21 - val_loss: 9.9", "count", 10, 3.21),
    ("Epoch 2/65, Steps:  57%|███▋ | 10/999 [18:09<12:43, 5.57it/s, lr=1e-05, step_loss=3.21]", "count", 10, 3.21),
    ("jt.Var([3.21],dtype=float32)", "order", 1, 3.21),
    ("jt.Var([3.21], dtype=float32)", "order", 1, 3.21),
    ("Step 10: loss jt.Var([3.21],dtype=float32)", "step", 10, 3.21),
    ("tensor(3.21, device='cuda:0', grad_fn=<NllLossBackward0>)", "order", 1, 3.21),
    ("np.float32(3.21)", "order", 1, 3.21),
    ("[3.21]", "order", 1, 3.21),
    ("损失：3.21", "order", 1, 3.21),
])
def test_forms_of_a_line(tmp_path, line, unit, at, loss):
    curves = read(tmp_path, line + "\n")
    assert (curves.unit, points(curves.train)) == (unit, [(at, loss)])


@pytest.mark.parametrize("line", ["hello", "3.2 apples", "loss:", "loss 3.2.1", "1,2,3", "1_000", "0x10",
                                  "[3.2, 4.5]", "glossary 3", "3,2 4", "loss: [3.2, 4.5]", "loss scale: 65536",
                                  "Loss improved from 3.2 to 3.1", "2025-01-02 10:00:03 Epoch 1/3", "loss 1,234",
                                  "loss_weight = 0.5"])
def test_a_line_without_a_loss_is_skipped_and_counted(tmp_path, line):
    curves = read(tmp_path, f"# a comment\n1.5\n\n{line}\n1.4\n")
    assert curves.train.losses.tolist() == [1.5, 1.4]
    assert any("1 of 3 lines have no loss and were skipped" in note for note in curves.notes)


def test_a_file_without_losses_is_refused_with_what_was_seen(tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, "# a comment\nhello\n\naccuracy 0.5\n")
    assert "no loss recognised in any of its 2 lines" in str(caught.value)
    assert "line 2: 'hello'" in str(caught.value) and "line 4: 'accuracy 0.5'" in str(caught.value)
    assert str(tmp_path / "loss.txt") in str(caught.value)


TRAINER = """\
  0%|          | 0/30 [00:00<?, ?it/s]
{'loss': 3.2, 'grad_norm': 1.5, 'learning_rate': 5e-05, 'epoch': 0.1}
{'loss': 2.9, 'grad_norm': 1.4, 'learning_rate': 4e-05, 'epoch': 0.2}
{'eval_loss': 9.9, 'eval_runtime': 1.01, 'eval_samples_per_second': 9.9, 'epoch': 0.2}
{'loss': 2.7, 'grad_norm': 1.3, 'learning_rate': 3e-05, 'epoch': 0.3}
{'train_runtime': 12.5, 'train_samples_per_second': 80.0, 'train_loss': 2.9333, 'epoch': 0.3}
"""
TRAINER_STATE = json.dumps({"best_metric": None, "epoch": 1.0, "global_step": 30, "log_history": [
    {"epoch": 0.33, "grad_norm": 1.5, "learning_rate": 5e-05, "loss": 3.2, "step": 10},
    {"epoch": 0.67, "loss": 2.9, "step": 20},
    {"epoch": 0.67, "eval_loss": 9.9, "eval_runtime": 1.0, "step": 20},
    {"epoch": 1.0, "loss": 2.7, "step": 30},
    {"epoch": 1.0, "step": 30, "total_flos": 1.0, "train_loss": 2.8667, "train_runtime": 12.5}]}, indent=2)
LLAMA_FACTORY = """\
{"current_steps": 10, "total_steps": 30, "loss": 3.2, "lr": 5e-05, "epoch": 0.33, "percentage": 33.3, "elapsed_time": "0:00:30"}
{"current_steps": 20, "total_steps": 30, "loss": 2.9, "lr": 4e-05, "epoch": 0.67, "percentage": 66.7, "elapsed_time": "0:01:00"}
{"current_steps": 20, "total_steps": 30, "eval_loss": 9.9, "epoch": 0.67, "percentage": 66.7, "elapsed_time": "0:01:05"}
{"current_steps": 30, "total_steps": 30, "loss": 2.7, "lr": 1e-05, "epoch": 1.0, "percentage": 100.0, "elapsed_time": "0:01:30"}
{"current_steps": 30, "total_steps": 30, "epoch": 1.0, "percentage": 100.0, "elapsed_time": "0:01:31"}
"""  # noqa: E501
MS_SWIFT = """\
{"loss": 3.2, "token_acc": 0.6, "memory(GiB)": 10.1, "train_speed(iter/s)": 0.3, "epoch": 0.33, "global_step/max_steps": "10/30", "percentage": "33.3%", "elapsed_time": "3s", "remaining_time": "4m 32s"}
{"loss": 2.9, "token_acc": 0.6, "epoch": 0.67, "global_step/max_steps": "20/30", "percentage": "66.7%"}
{"eval_loss": 9.9, "eval_token_acc": 0.7, "eval_runtime": 1.0, "epoch": 0.67, "global_step/max_steps": "20/30"}
{"loss": 2.7, "token_acc": 0.6, "epoch": 1.0, "global_step/max_steps": "30/30", "percentage": "100.0%"}
{"train_runtime": 10.0, "train_loss": 2.9333, "epoch": 1.0, "global_step/max_steps": "30/30"}
{"last_model_checkpoint": "out/checkpoint-30", "best_metric": 9.9, "memory": 10.1}
"""  # noqa: E501
LIGHTNING = """\
epoch,lr-AdamW/pg1,step,train_loss_epoch,train_loss_step,val_loss
0,,10,,3.2,
0,,20,,2.9,
0,,20,,,9.9
0,,20,3.05,,
,0.001,25,,,
1,,30,,2.7,
"""
GBK = """\
2025-01-02 10:00:00,101 - exp - INFO - 实验配置: {
  "lora_r": 8,
  "batch_size": 1
}
2025-01-02 10:00:01,200 - exp - INFO - 加载分词器...
2025-01-02 10:00:02,300 - exp - INFO - Epoch 1/2
2025-01-02 10:00:03,000 - exp - INFO - 步骤 10/402 - 训练损失: 3.200000 - 步骤耗时: 0.10秒
2025-01-02 10:00:04,000 - exp - INFO - 步骤 20/402 - 训练损失: 2.900000 - 步骤耗时: 0.11秒
2025-01-02 10:00:20,000 - exp - INFO - 验证损失: 9.900000
2025-01-02 10:00:05,000 - exp - INFO - 步骤 30/402 - 训练损失: 2.700000 - 步骤耗时: 0.12秒
"""
LITGPT = """\
{'data': {'class_path': 'litgpt.data.Alpaca'}, 'devices': 1}
Seed set to 1337
Number of trainable parameters: 1,126,400
Epoch 1 | iter 10 step 1 | loss train: 3.200, val: n/a | iter time: 45.73 ms
Epoch 1 | iter 20 step 1 | loss train: 2.900, val: n/a | iter time: 45.73 ms
Validating ...
iter 20: val loss 9.9000, val time: 1234.50 ms
Epoch 1 | iter 30 step 2 | loss train: 2.700, val: 9.900 | iter time: 45.73 ms (step)
"""
MLX = """\
Starting training..., iters: 30
Iter 10: Train loss 3.200, Learning Rate 1.000e-05, It/sec 0.5, Tokens/sec 200.1, Trained Tokens 3000, Peak mem 4.1 GB
Iter 20: Train loss 2.900, Learning Rate 1.000e-05, It/sec 0.5, Tokens/sec 200.1, Trained Tokens 6000, Peak mem 4.1 GB
Iter 20: Val loss 9.900, Val took 10.2s
Iter 20: Saved adapter weights to adapters.npz.
Iter 30: Train loss 2.700, Learning Rate 1.000e-05, It/sec 0.5, Tokens/sec 200.1, Trained Tokens 9000, Peak mem 4.1 GB
"""
NANO_GPT = """\
tokens per iteration will be: 491,520
iter 10: loss 3.2000, time 35001.20ms, mfu -100.00%
step 20: train loss 8.1000, val loss 9.9000
iter 20: loss 2.9000, time 301.20ms, mfu 20.00%
iter 30: loss 2.7000, time 301.20ms, mfu 20.00%
"""
MEGATRON = """\
 [2024-01-01 10:00:00] iteration       10/      30 | consumed samples:  80 | elapsed time per iteration (ms): 301.1 | learning rate: 1.0E-05 | global batch size:     8 | lm loss: 3.200000E+00 | loss scale: 4294967296.0 | grad norm: 1.0 | number of skipped iterations:   0 |
 [2024-01-01 10:00:03] iteration       20/      30 | consumed samples: 160 | elapsed time per iteration (ms): 301.1 | learning rate: 1.0E-05 | global batch size:     8 | lm loss: 2.900000E+00 | loss scale: 4294967296.0 | grad norm: 1.0 |
 validation loss at iteration 20 | lm loss value: 9.900000E+00 | lm loss PPL: 1.9930E+04 |
 [2024-01-01 10:00:06] iteration       30/      30 | consumed samples: 240 | elapsed time per iteration (ms): 301.1 | learning rate: 1.0E-05 | global batch size:     8 | lm loss: 2.700000E+00 | loss scale: 4294967296.0 | grad norm: 1.0 |
"""  # noqa: E501
FAIRSEQ = """\
2020-01-01 10:00:00 | INFO | inner | {"epoch": 1, "update": 0.01, "loss": "3.2", "ppl": "24", "num_updates": "10"}
2020-01-01 10:00:00 | INFO | inner | {"epoch": 1, "update": 0.02, "loss": "2.9", "ppl": "18", "num_updates": "20"}
2020-01-01 10:00:00 | INFO | valid | {"epoch": 1, "valid_loss": "9.9", "num_updates": "20", "valid_best_loss": "9"}
2020-01-01 10:00:00 | INFO | inner | {"epoch": 1, "update": 0.03, "loss": "2.7", "ppl": "15", "num_updates": "30"}
"""
LLM_C = """\
step   10/30 | loss 3.200000 (+nanz)| norm 15.2000 (+nanz)| lr 1.00e-06 | 500.10 ms | 40.1% bf16 MFU | 1000 tok/s
step   20/30 | loss 2.900000 (+1.2z)| norm 15.2000 (+nanz)| lr 1.00e-06 | 500.10 ms | 40.1% bf16 MFU | 1000 tok/s
val loss 9.900000
step   30/30 | loss 2.700000 (+0.2z)| norm 15.2000 (+nanz)| lr 1.00e-06 | 500.10 ms | 40.1% bf16 MFU | 1000 tok/s
"""
TORCHTUNE = """\
Step 10 | loss:3.2 lr:2e-05 tokens_per_second_per_gpu:100.5
Step 20 | loss:2.9 lr:2e-05 tokens_per_second_per_gpu:100.5
Step 20 | val_loss:9.9
Step 30 | loss:2.7 lr:2e-05 tokens_per_second_per_gpu:100.5
"""
MODEL_CARD = """\
| Training Loss | Epoch | Step | Validation Loss |
|:-------------:|:-----:|:----:|:---------------:|
| 3.2           | 0.33  | 10   | No log          |
| 2.9           | 0.67  | 20   | 9.9             |
| 2.7           | 1.0   | 30   |                 |
"""
COLUMNS = {"step": [10, 20, 30], "train_loss": [3.2, 2.9, 2.7], "lr": 1e-4}
STEPS = (10, 20, 30)


@pytest.mark.parametrize("text, unit, places", [
    (TRAINER, "epoch", (0.1, 0.2, 0.3)),
    (TRAINER.replace("'eval_runtime'", "'memory/max_active (GiB)': 1.92, 'eval_runtime'"), "epoch", (0.1, 0.2, 0.3)),
    (TRAINER_STATE, "step", STEPS),
    (LLAMA_FACTORY, "step", STEPS),
    (MS_SWIFT, "step", STEPS),
    (MS_SWIFT.replace('"', "'"), "step", STEPS),
    (LIGHTNING, "step", STEPS),
    (LIGHTNING.replace(",", "\t"), "step", STEPS),
    (GBK, "step", STEPS),
    (LITGPT, "iteration", STEPS),
    (MLX, "iteration", STEPS),
    (NANO_GPT, "iteration", STEPS),
    (MEGATRON, "iteration", STEPS),
    (FAIRSEQ, "step", STEPS),
    (LLM_C, "step", STEPS),
    (TORCHTUNE, "step", STEPS),
    (MODEL_CARD, "step", STEPS),
    ("Epoch 1, Step 10: train: loss 3.2, acc 0.5\nEpoch 1, Step 20: train: loss 2.9, acc 0.5\n"
     "[val] step 20 loss 9.9\nEpoch 1, Step 30: train: loss 2.7, acc 0.5\n", "step", STEPS),
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_logs_of_other_programs(tmp_path, text, unit, places, encoding):
    if encoding == "gb18030" and text is not GBK and text[0] not in "{e":  # JSON and CSV have no other lines
        text = text.replace("\n", "\n这里是训练日志\n", 1)
    curves = read(tmp_path, text.encode(encoding))
    assert curves.unit == unit
    assert points(curves.train) == list(zip(places, (3.2, 2.9, 2.7)))
    assert points(curves.validation) == [(places[1], 9.9)]


def test_trainer_of_transformers_5_quotes_its_numbers(tmp_path):
    text = TRAINER.replace(": ", ": '").replace(", '", "', '").replace("}", "'}")
    assert "'loss': '3.2', 'grad_norm': '1.5'" in text
    assert read(tmp_path, text).train.losses.tolist() == [3.2, 2.9, 2.7]


def test_the_encoding_is_reported_unless_it_is_utf_8(tmp_path):
    assert not any("read as" in note for note in read(tmp_path, GBK).notes)
    assert any("read as GB18030" in note for note in read(tmp_path, GBK.encode("gbk")).notes)
    assert any("read as UTF-16" in note for note in read(tmp_path, GBK.encode("utf-16")).notes)
    assert any("UTF-8 and GB18030, line by line" in note
               for note in read(tmp_path, GBK.encode() + GBK.replace("损失", "损失 ").encode("gbk")).notes)
    curves = read(tmp_path, "perte\xe9: x\nloss 3.1\n\xe9\n".encode("latin-1"))
    assert curves.train.losses.tolist() == [3.1]
    assert any("2 lines are neither UTF-8 nor GB18030" in note for note in curves.notes)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_a_character_cut_off_at_the_end_does_no_harm(tmp_path, encoding):
    curves = read(tmp_path, (GBK + "步骤").encode(encoding)[:-1])
    assert curves.train.losses.tolist() == [3.2, 2.9, 2.7]


def test_progress_bars_are_split_at_carriage_returns(tmp_path):
    bar = "  3%|3         | 1/30 [00:01<00:30,  1.00s/it]"
    curves = read(tmp_path, f"{bar}\r   \r{{'loss': 3.0, 'epoch': 0.1}}\r    \r{bar}\r{{'loss': 2.0, 'epoch': 0.2}}\n"
                            f"{bar}{{'loss': 1.5, 'epoch': 0.3}}\n")
    assert points(curves.train) == [(0.1, 3.0), (0.2, 2.0), (0.3, 1.5)]


def test_a_redrawn_progress_bar_counts_once(tmp_path):
    bar = "steps:  22%|##   | {}/800 [00:46<02:44,  3.79it/s, avr_loss={}]\r"
    curves = read(tmp_path, "epoch 1/2\n" + bar.format(176, 0.5) + bar.format(176, 0.5) + bar.format(177, 0.4) + "\n")
    assert (curves.unit, points(curves.train)) == ("count", [(176, 0.5), (177, 0.4)])
    assert not any("later one" in note for note in curves.notes)


def test_omitted_losses_are_named_and_counted(tmp_path):
    notes = " ".join(read(tmp_path, NANO_GPT).notes)
    assert "drawn: `loss` and `val loss`" in notes and "1 of `train loss`" in notes
    assert "1 of `train_loss` (of the whole run)" in " ".join(read(tmp_path, TRAINER).notes)
    notes = " ".join(read(tmp_path, "step 1 loss 3.2 loss_cls 2.0 loss_box 1.2\nbest loss: 3.2\n").notes)
    assert "1 of `loss_cls`" in notes and "1 of `best loss` (of the whole run)" in notes


def test_losses_without_an_obvious_choice_are_refused(tmp_path):
    with pytest.raises(UserError, match="one main training loss, found 2 of `d loss`, 2 of `g loss`. Keep the lines"):
        read(tmp_path, "[Batch 0/9] [D loss: 0.69] [G loss: 0.70]\n[Batch 1/9] [D loss: 0.68] [G loss: 0.71]\n")
    both = "step 1 loss 3.2\neval_a_loss: 1\neval_b_loss: 2\n"
    assert read(tmp_path, both).validation is None  # neither is the validation loss
    assert read(tmp_path, both + "eval_a_loss: 1.5\n").validation.losses.tolist() == [1, 1.5]


def test_of_equally_frequent_losses_those_marked_as_training_are_drawn(tmp_path):
    curves = read(tmp_path, "step 1, loss: 3.2\ntrain: step 1, loss: 3.1\n")
    assert curves.train.losses.tolist() == [3.1] and "1 of `loss`" in " ".join(curves.notes)


def test_of_two_losses_in_a_line_the_later_one_is_drawn(tmp_path):
    curves = read(tmp_path, "step 1, loss: 3.2, loss: 2.9\n")
    assert points(curves.train) == [(1, 2.9)] and "replaced by a later loss at the same place" in " ".join(curves.notes)


def test_validation_is_never_drawn_as_training(tmp_path):
    with pytest.raises(UserError, match="expected training losses, found 2 of `val loss`.*--val-loss"):
        read(tmp_path, "step 1 val loss 3.2\nstep 2 val loss 3.1\n")
    with pytest.raises(UserError, match="expected validation losses, found 1 of `train_loss`"):
        read(tmp_path, "1\n", "step 1 train_loss 3.2\n")


def test_a_program_called_test_does_not_make_its_losses_validation(tmp_path):
    line = "2025-01-02 10:00:03,000 - test - INFO - step {} loss {}\n"
    assert read(tmp_path, line.format(1, 3.2)).train.losses.tolist() == [3.2]
    curves = read(tmp_path, line.replace("test", "train").format(1, 3.2) + line.format(1, 9.9))
    assert (curves.train.losses.tolist(), curves.validation.losses.tolist()) == ([3.2], [9.9])


def test_bare_numbers_in_a_text_are_not_losses(tmp_path):
    curves = read(tmp_path, "3\n17\nstep 1 loss 3.2\nstep 2 loss 3.1\nhello\n")
    assert curves.train.losses.tolist() == [3.2, 3.1]


def test_a_header_names_the_columns(tmp_path):
    curves = read(tmp_path, "epoch,step,lr,train_loss,val_loss\n1,10,0.1,2.5,3.5\n1,20,0.1,2.0,3.0\n")
    assert (points(curves.train), points(curves.validation)) == ([(10, 2.5), (20, 2)], [(10, 3.5), (20, 3)])
    assert points(read(tmp_path, "Wall time,Step,Value\n1700000000.1,10,2.5\n1700000001.1,20,2.4\n").train) == [
        (10, 2.5), (20, 2.4)]  # TensorBoard's download
    assert read(tmp_path, "loss\n3.5\n3.0\n").train.losses.tolist() == [3.5, 3.0]


def test_json_documents(tmp_path):
    assert points(read(tmp_path, json.dumps(COLUMNS)).train) == [(10, 3.2), (20, 2.9), (30, 2.7)]
    rows = [{"epoch": 1, "train": {"loss": 3.2}, "val": {"loss": 9.9}}, {"epoch": 2, "train": {"loss": 2.9}}]
    curves = read(tmp_path, json.dumps(rows, indent=1))
    assert (points(curves.train), points(curves.validation)) == ([(1, 3.2), (2, 2.9)], [(1, 9.9)])
    assert points(read(tmp_path, "[3.2,\n2.9]").train) == [(1, 3.2), (2, 2.9)]
    curves = read(tmp_path, json.dumps({"train_loss": [3.2, 2.9, 2.7, 2.6], "val_loss": [9.9, 9.8]}))
    assert (curves.unit, points(curves.validation)) == ("order", [(2, 9.9), (4, 9.8)])


def test_an_epoch_on_its_own_line(tmp_path):
    curves = read(tmp_path, "Epoch 0/1\n-----\ntrain Loss: 0.6 Acc: 0.7\nval Loss: 0.2 Acc: 0.9\n\n"
                            "Epoch 1/1\n-----\ntrain Loss: 0.4 Acc: 0.7\nval Loss: 0.1 Acc: 0.9\nBest val Acc: 0.9\n")
    assert curves.unit == "epoch"
    assert (points(curves.train), points(curves.validation)) == ([(0, 0.6), (1, 0.4)], [(0, 0.2), (1, 0.1)])


def test_steps_that_restart_each_epoch_are_continued(tmp_path):
    text = "".join(f"Epoch {epoch}/2, Step {step}/{{}} Loss: {epoch + step}\n" for epoch in (1, 2) for step in (1, 2))
    curves = read(tmp_path, text.format(*[3] * 4) + "val loss: 9.9\n")
    assert curves.train.steps.tolist() == [1, 2, 4, 5]  # the log says that an epoch has 3
    assert points(curves.validation) == [(5, 9.9)]
    assert any("steps restart once" in note for note in curves.notes)
    assert read(tmp_path, text.replace("/{}", "")).train.steps.tolist() == [1, 2, 3, 4]


def test_a_run_that_returned_to_a_checkpoint_is_drawn_once(tmp_path):
    steps = (10, 20, 30, 40, 20, 30, 40, 50)
    text = "".join(f"step {step} loss {number}.5\nstep {step} val_loss {number}.25\n"
                   for number, step in enumerate(steps))
    curves = read(tmp_path, text)
    assert points(curves.train) == [(10, 0.5), (20, 4.5), (30, 5.5), (40, 6.5), (50, 7.5)]
    assert points(curves.validation) == [(10, 0.25), (20, 4.25), (30, 5.25), (40, 6.25), (50, 7.25)]
    assert any("6 losses are left out: the run went back to an earlier step" in note for note in curves.notes)


def test_a_loss_without_a_step_among_others_with_one_is_left_out(tmp_path):
    curves = read(tmp_path, "step 1 loss 3.2\nstep 2 loss 3.1\nloss 9\n")
    assert points(curves.train) == [(1, 3.2), (2, 3.1)]
    assert any("1 loss is left out: no step given" in note for note in curves.notes)


def test_rounded_epochs_are_spread(tmp_path):
    curves = read(tmp_path, "".join(f"{{'loss': {loss}, 'epoch': {epoch}}}\n" for loss, epoch in
                                    ((5, 0.01), (4, 0.01), (3, 0.02), (2, 0.02), (1, 0.03))))
    np.testing.assert_allclose(curves.train.steps, [0.01, 0.015, 0.02, 0.025, 0.03])


def test_losses_that_are_not_finite_are_left_out_and_counted(tmp_path):
    curves = read(tmp_path, "3.0\nnan\n2.0\n-inf\nNaN\n1.0\n")
    assert points(curves.train) == [(1, 3.0), (3, 2.0), (6, 1.0)]
    assert "3 of 6 losses are not finite" in curves.notes[0]
    curves = read(tmp_path, "{'loss': 3.0, 'step': 1}\n{'loss': nan, 'step': 2}\n{'loss': -inf, 'step': 3}\n"
                            '{"loss": null, "step": 4}\n{"loss": NaN, "step": 5}\n')
    assert (points(curves.train), "4 of 5 losses are not finite" in curves.notes[0]) == ([(1, 3)], True)
    with pytest.raises(UserError, match="only losses that are not finite"):
        read(tmp_path, "nan\n")


@pytest.mark.parametrize("content", [b"", b"\n# x\n"])
def test_empty_files_are_refused(tmp_path, content):
    with pytest.raises(UserError, match="no line with a number"):
        read(tmp_path, content)
    with pytest.raises(UserError, match="No such file"):
        read_loss_files(tmp_path / "none.txt")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_our_own_lines_read_back_to_the_same_floats(tmp_path_factory, losses):
    path = tmp_path_factory.mktemp("log") / "train_loss.txt"
    path.write_text("".join(f"{loss!r}\n" for loss in losses))
    assert read_loss_files(path).train.losses.tolist() == losses


WORDS = st.sampled_from([*":={}\"',|[](/-#\r\n\n  012", "step", "iter", "epoch", "Loss", "loss", "val", "train_loss",
                         "eval_loss", "损失", "步骤", "nan", "1e999", "3.5", "10", "20/30", "57%", "1,000", "10:00:03",
                         "第3步", "null", "best"])
LINES = st.lists(WORDS, max_size=60)


@given(st.one_of(st.text(max_size=60), LINES.map(" ".join), LINES.map("".join)))
@example("nan 0")
@example("-inf 3.5\n7 3.25\n")
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("log") / "loss.txt"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        curves = read_loss_files(path)
    except UserError:
        return
    for series in filter(None, (curves.train, curves.validation)):
        assert np.isfinite(series.losses).all() and np.isfinite(series.steps).all()
        assert (np.diff(series.steps) > 0).all()
        assert len(series.steps) == len(series.losses) > 0


def test_validation_of_another_file_without_steps_is_spread_over_the_training(tmp_path):
    train = "".join(f"{3 - step / 100}\n" for step in range(100))
    curves = read(tmp_path, train, "3\nnan\n2\n1\n")
    assert curves.validation.steps.tolist() == [25, 75, 100]
    assert any("spread evenly" in note for note in curves.notes)
    curves = read(tmp_path, train, "step,loss\n7,3\n50,2\n")
    assert (curves.validation.steps.tolist(), curves.notes) == ([7, 50], ())
    curves = read(tmp_path, "step 10 loss 3\nstep 20 loss 2\nval_loss: 7\n",
                  "epoch 1: val_loss 3\nepoch 2: val_loss 2\n")
    assert points(curves.validation) == [(10, 3), (20, 2)]
    assert any("names the epoch of each loss, not its step" in note for note in curves.notes)
    assert any("its own validation loss is left out" in note for note in curves.notes)
    curves = read(tmp_path, NANO_GPT, NANO_GPT)
    assert points(curves.validation) == [(20, 9.9)]


def test_run_folder_takes_exact_steps_from_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "val_loss": 4.0}\n{"step": 1, "train_loss": 3.5}\n{"step": 2, "train_loss": null}\n'
        '{"step": 2, "val_loss": 3.0, "f1": 20.0}\n{"step": 3, "train_l')
    curves = read_run_losses(tmp_path)
    assert (curves.unit, points(curves.train)) == ("optimizer step", [(1, 3.5)])
    assert points(curves.validation) == [(0, 4.0), (2, 3.0)]
    assert "1 of 2 losses are not finite" in curves.notes[0]


def test_run_folder_without_metrics_takes_the_text_logs(tmp_path):
    (tmp_path / "train_loss.txt").write_text("3\n2\n")
    assert read_run_losses(tmp_path).validation is None
    (tmp_path / "val_loss.txt").write_text("2.5\n")
    assert read_run_losses(tmp_path).validation.steps.tolist() == [2]


@pytest.mark.parametrize("settings, share", [
    (None, 0), ("label_smoothing: 0.1\n", 0.1), ("label_smoothing: 0.0\n", 0), ("epochs: 1\n", 0), ("", 0),
    ("label_smoothing: null\n", 0), ("label_smoothing: [1]\n", 0), ("label_smoothing: 7\n", 0),
    ("label_smoothing: nan\n", 0), ("label_smoothing: x\n", 0), ("\xff: {", 0)])
@pytest.mark.parametrize("log, line", [
    ("metrics.jsonl", '{"step": 1, "train_loss": 3.5}\n'), ("train_loss.txt", "3.5\n")])
def test_run_folder_tells_of_smoothed_labels(settings, share, log, line, tmp_path):
    (tmp_path / log).write_text(line)
    if settings is not None:
        (tmp_path / "config.yaml").write_text(settings, encoding="latin-1")
    curves = read_run_losses(tmp_path)
    assert (curves.label_smoothing, points(curves.train)) == (share, [(1, 3.5)])


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a run folder"):
        read_run_losses(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 3}\n{"train_loss": 2}\n[]\nx\n')
    with pytest.raises(UserError, match="found 3 other lines") as caught:
        read_run_losses(tmp_path)
    assert all(f"line {number}" in str(caught.value) for number in (2, 3, 4))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val_loss": 3}\n')
    with pytest.raises(UserError, match="no train_loss"):
        read_run_losses(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0, "train_loss": 3}\n\xe9\n')
    with pytest.raises(UserError, match="expected UTF-8 text, found byte 0xe9 at position 29"):
        read_run_losses(tmp_path)
