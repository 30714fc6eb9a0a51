from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
from matplotlib import font_manager

from jittor_lora.cli.main import main
from jittor_lora.evaluation.metrics import Metrics, write_metrics
from jittor_lora.training.log import RunLog
from needs import needs_cjk_font

BASE = Metrics(4.0, 11.0, 400, 0, (2.5, 6.3), (9.0, 13.7), "paragraph", 90)
ADAPTER = Metrics(41.0, 55.0, 400, 0, (36.8, 46.3), (51.3, 60.4), "paragraph", 90)


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    with RunLog(folder, 20, quiet=True) as log:
        for step in range(1, 21):
            log.step(step, loss=3 / step, learning_rate=1e-3, grad_norm=1.0, tokens=10, questions=2, seconds=0.1)
            if step % 5 == 0:
                log.validation(step, loss=3.5 / step)
    return folder


@pytest.fixture
def evaluated(run_folder):
    write_metrics(run_folder / "evaluation" / "base" / "metrics.json", BASE)
    write_metrics(run_folder / "evaluation" / "adapter" / "metrics.json", ADAPTER)
    return run_folder


def svg_texts(path):
    return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))


def written(capsys):
    return capsys.readouterr().out.split()


def test_run_folder_gives_curves_in_both_formats(run_folder, capsys):
    assert main(["plot", str(run_folder)]) == 0
    assert written(capsys) == [str(run_folder / "plots" / name) for name in ("loss.png", "loss.svg")]
    assert "lowest: 0.175 at step 20" in svg_texts(run_folder / "plots" / "loss.svg")
    assert (run_folder / "plots" / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_evaluated_run_folder_gives_bars_too(evaluated, capsys):
    assert main(["plot", str(evaluated), "--output", str(evaluated / "pictures/")]) == 0
    assert [path.rsplit("/", 1)[1] for path in written(capsys)] == ["loss.png", "loss.svg", "scores.png", "scores.svg"]
    texts = svg_texts(evaluated / "pictures" / "scores.svg")
    assert texts.index("base model") < texts.index("with adapter")
    assert {"4.0", "11.0", "41.0", "55.0"} <= set(texts)


def test_output_file_gives_its_format_alone(evaluated, tmp_path, capsys):
    assert main(["plot", str(evaluated), "--output", str(tmp_path / "out" / "my.plot.svg"), "--title", "T 1"]) == 0
    assert written(capsys) == [str(tmp_path / "out" / name) for name in ("my.plot.svg", "my.plot-scores.svg")]
    assert "T 1" in svg_texts(tmp_path / "out" / "my.plot.svg")
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_text_logs_of_other_scripts(tmp_path, capsys):
    (tmp_path / "train.log").write_text("Epoch 1, Step 1, Loss: 3.5\nEpoch 1, Step 2, Loss: nan\n")
    (tmp_path / "val.log").write_text("3.25\n")
    assert main(["plot", "--train-loss", str(tmp_path / "train.log"), "--val-loss", str(tmp_path / "val.log"),
                 "--output", str(tmp_path / "loss.svg")]) == 0
    notes = capsys.readouterr().err
    assert "1 of 2 losses are not finite" in notes
    assert "spread evenly" in notes
    assert "lowest: 3.25 at step 1" in svg_texts(tmp_path / "loss.svg")


def test_metrics_files_are_named_by_folder_or_by_the_user(evaluated, tmp_path):
    odd = tmp_path / "lr=1e-3"
    write_metrics(odd / "metrics.json", ADAPTER)
    assert main(["plot", "--metrics", str(evaluated / "evaluation" / "base"), str(odd / "metrics.json"),
                 f"r=8={odd}", "--output", str(tmp_path / "bars.svg")]) == 0
    texts = svg_texts(tmp_path / "bars.svg")
    assert texts[-3:] == ["base model", "lr=1e-3", "r=8"]


def test_scores_by_different_rules_are_not_drawn_together(evaluated, tmp_path, capsys):
    write_metrics(tmp_path / "metrics.json", replace(ADAPTER, scoring="cmrc"))
    assert main(["plot", "--metrics", str(evaluated / "evaluation" / "base"), f"zh={tmp_path}", "--output",
                 str(tmp_path / "bars.svg")]) == 2
    assert "base by squad, zh by cmrc" in capsys.readouterr().err


@needs_cjk_font
def test_chinese_is_drawn_with_a_font_of_the_system(run_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns of characters that the font lacks
        assert main(["plot", str(run_folder), "--language", "zh"]) == 0
    assert any("\u635f\u5931" in text for text in svg_texts(run_folder / "plots" / "loss.svg"))


def test_chinese_without_a_font_says_what_to_install(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    assert main(["plot", str(run_folder), "--language", "zh"]) == 2
    assert "fonts-noto-cjk" in capsys.readouterr().err
    assert not (run_folder / "plots").exists()


@pytest.mark.parametrize("arguments, message", [
    ([], "nothing to plot"),
    (["RUN", "--train-loss", "x"], "both a run folder"),
    (["--val-loss", "x", "--metrics", "y"], "--val-loss needs --train-loss"),
    (["--train-loss", "x"], "--output is needed"),
    (["RUN/nowhere"], "expected a run folder"),
    (["RUN", "--output", "x.pdf"], "ends in .png or .svg"),
    (["RUN", "--smoothing", "0"], "expected a whole number from 1"),
    (["RUN", "--smoothing", "many"], "expected a whole number from 1"),
    (["RUN", "--language", "fr"], "invalid choice: 'fr'"),
    (["RUN", "--font", "RUN/none.ttf"], "no such font file"),
    (["RUN", "--metrics", "RUN/none", "RUN/train_loss.txt"], "none: cannot be read.*\n.*train_loss.txt"),
    (["--metrics", "BASE", "BASE", "--output", "RUN"], "several evaluations are named base"),
    (["RUN", "--output", "RUN/train_loss.txt/"], "cannot be written"),
])
def test_mistakes_end_in_exit_code_2_with_a_message(evaluated, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = str(evaluated / "evaluation" / "base")
    arguments = [argument.replace("RUN", str(evaluated)).replace("BASE", base) for argument in arguments]
    assert main(["plot", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "Traceback" not in error
