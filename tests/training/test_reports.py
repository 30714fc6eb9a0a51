"""Metrics sent elsewhere: what each destination gets, and that none of them can harm a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import small_run
from jittor_lora.errors import UserError
from jittor_lora.settings.reports import PACKAGES, require_packages
from jittor_lora.settings.run import RunConfig
from jittor_lora.training import reports
from jittor_lora.training.log import RunLog

STEP = {"learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 10, "questions": 2, "seconds": 0.5}
ROW = {"train_loss": 2.0, **STEP, "tokens_per_second": 20.0}


class Service:
    """Stands for the packages of SwanLab and Weights & Biases: both have `init`, which returns a run with `log` and
    `finish`."""

    def __init__(self, fails_at: str = ""):
        self.fails_at, self.started, self.rows, self.closed = fails_at, [], [], 0

    def __getattr__(self, name):  # Settings
        return lambda **settings: settings

    def init(self, **values):
        self._may_fail("init")
        self.started.append(values)
        return self

    def log(self, values, step):
        self._may_fail("log")
        self.rows.append((step, values))

    def finish(self):
        self._may_fail("finish")
        self.closed += 1

    def _may_fail(self, call):
        if call == self.fails_at:
            raise ConnectionError(f"no {call}\nand many more lines")


@pytest.fixture(params=["swanlab", "wandb"])
def name(request):
    return request.param


@pytest.fixture
def service(name, monkeypatch):
    """A function that puts a `Service` in place of the package."""
    def put(**how):
        made = Service(**how)
        monkeypatch.setitem(sys.modules, PACKAGES[name], made)
        return made

    return put


def log_steps(log, first, last):
    for step in range(first, last + 1):
        log.step(step, loss=2.0 / step, **STEP)


def test_a_service_gets_settings_and_the_rows_of_metrics_jsonl(tmp_path, name, service):
    made = service()
    with RunLog(tmp_path / "first", 2, quiet=True, report_to=[name]) as log:
        log.config({"lora_r": 8, "dev": None})
        log.validation(0, loss=4.0, f1=3.0)
        log_steps(log, 1, 2)
    assert [(values["name"], values["config"]) for values in made.started] == [("first", {"lora_r": 8, "dev": None})]
    assert made.rows[:2] == [(0, {"val_loss": 4.0, "f1": 3.0}), (1, ROW)]
    written = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [{**row, "tokens_per_second": 20.0} if "tokens" in row else row for row in written] == [
        {"step": step, **row} for step, row in made.rows]
    assert made.closed == 1


def test_a_resumed_run_has_its_id_and_another_run_another(tmp_path, name, service):
    made = service()
    for folder, resumed in (("a", False), ("a", True), ("b", False)):
        with RunLog(tmp_path / folder, 9, quiet=True, report_to=[name]) as log:
            if resumed:
                log.truncate_to(3)
            log_steps(log, 4 if resumed else 1, 5)
    ids = [values["id"] for values in made.started]
    assert ids[0] == ids[1] != ids[2]
    assert all(values["resume"] == "allow" for values in made.started)
    assert [step for step, _ in made.rows] == [1, 2, 3, 4, 5, 4, 5, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_a_service_that_fails_is_left_out_with_one_message(tmp_path, name, service, fails_at, capsys):
    made = service(fails_at=fails_at)
    with RunLog(tmp_path, 5, report_to=[name]) as log:
        log_steps(log, 1, 5)
    said = capsys.readouterr().err
    assert said.count(f"{name}: ConnectionError: no {fails_at}. The run goes on without it") == 1
    assert "many more lines" not in said
    assert len((tmp_path / "train_loss.txt").read_text().splitlines()) == 5
    assert len(made.rows) == (5 if fails_at == "finish" else 0)


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"wandb": 3}', '{"wandb": "../../x"}', "\0" * 9])
def test_damaged_ids_do_not_end_the_run(tmp_path, name, service, content, capsys):
    made = service()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "ids.json").write_text(content)
    with RunLog(tmp_path, 1, report_to=[name]) as log:
        log_steps(log, 1, 1)
    assert "ids.json" in capsys.readouterr().err
    assert made.started == []


def test_it_is_closed_when_the_run_is_interrupted(tmp_path, name, service):
    made = service()
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 5, quiet=True, report_to=[name]) as log:
        log_steps(log, 1, 2)
        raise KeyboardInterrupt
    assert made.closed == 1


def test_ctrl_c_stays_ours_beside_swanlab(tmp_path, monkeypatch):
    class Greedy(Service):
        def init(self, **values):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return self

        def finish(self):
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    monkeypatch.setitem(sys.modules, "swanlab", Greedy())
    before = signal.getsignal(signal.SIGINT)
    with RunLog(tmp_path, 1, quiet=True, report_to=["swanlab"]) as log:
        log_steps(log, 1, 1)
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_tensorboard_files_are_whole_after_each_row(tmp_path):
    pytest.importorskip("tensorboardX")
    log = RunLog(tmp_path, 3, quiet=True, report_to=["tensorboard"])
    sizes = []
    for step in (1, 2, 3):
        log_steps(log, step, step)
        (file,) = (tmp_path / "tensorboard").iterdir()
        sizes.append(file.stat().st_size)
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    log.sync()
    log.close()
    assert file.stat().st_size == sizes[2]


def test_tensorboard_does_not_bring_torch(tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = ("from jittor_lora.training.log import RunLog\nwith RunLog('run', 1, quiet=True, report_to=['tensorboard']) "
            "as log:\n    log.step(1, loss=1, learning_rate=0, grad_norm=0, tokens=1, questions=1, seconds=1)\n"
            "import sys; assert 'torch' not in sys.modules")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_destination_is_one_module_one_line_and_one_extra():
    folder = Path(reports.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "run_id"} == set(PACKAGES)
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'{name} = ["{package}' in project for name, package in PACKAGES.items())


def test_absent_packages_are_named_with_the_command(monkeypatch):
    monkeypatch.setitem(PACKAGES, "swanlab", "no_such_package_a")
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package_b")
    with pytest.raises(UserError, match="swanlab, wandb: .*pip install no_such_package_a no_such_package_b"):
        require_packages(["swanlab", "wandb"])
    require_packages(None)


def test_an_absent_package_ends_the_command_before_anything_is_removed(tmp_path):
    small_run.make_files(tmp_path, 2, 0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    done = subprocess.run([sys.executable, "-m", "jittor_lora", "train", "--base", "base", "--data", "train.json",
                           "--output", "run", "--overwrite", "--report-to", "wandb"], cwd=tmp_path, text=True,
                          capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert done.returncode == 2 and "pip install wandb" in done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(("given", "expected"), [
    ("tensorboard", ["tensorboard"]), ("wandb, swanlab,wandb", ["wandb", "swanlab"]), ("none", None), (None, None),
    (["swanlab"], ["swanlab"])])
def test_names_of_destinations(given, expected):
    assert RunConfig(report_to=given).report_to == expected


@pytest.mark.parametrize("wrong", ["wand", "", "tensorboard,clearml", [3], 7, []])
def test_unknown_destinations_are_refused(wrong):
    with pytest.raises(UserError, match="report_to"):
        RunConfig(report_to=wrong)


@pytest.mark.parametrize(("given", "expected"), [("true", ["tensorboard"]), (True, ["tensorboard"]), ("no", None),
                                                 (False, None)])
def test_the_former_setting_is_still_accepted(given, expected, tmp_path):
    recipe = tmp_path / "old.yaml"
    recipe.write_text(f"tensorboard: {given}\n")
    with pytest.deprecated_call():
        config = RunConfig.resolve(str(recipe))
    assert config.report_to == expected and config.origin("report_to") == f"{recipe}, line 1"
    with pytest.deprecated_call():
        assert RunConfig(tensorboard=given).report_to == expected
    with pytest.deprecated_call():
        assert RunConfig.resolve(str(recipe), {"report_to": "wandb"}).report_to == ["wandb"]


def test_a_config_yaml_reads_back(tmp_path):
    with RunLog(tmp_path, 1, quiet=True) as log:
        log.config(RunConfig(report_to="wandb,swanlab").recipe())
    assert RunConfig.resolve(str(tmp_path / "config.yaml")).report_to == ["wandb", "swanlab"]
