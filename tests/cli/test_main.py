"""The command line's frame: verbs, mistakes, exit codes, and how fast it is there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from jittor_lora import __version__
from jittor_lora.cli import train
from jittor_lora.cli.adapter import ACTIONS
from jittor_lora.cli.main import VERBS, main
from jittor_lora.errors import UserError
from jittor_lora.system import runtime


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "jittor_lora", *arguments], capture_output=True, text=True)


def failing(monkeypatch, error: BaseException) -> int:
    """The exit code when `train` raises `error`."""
    def run(args):
        raise error
    monkeypatch.setattr(train, "run", run)
    return main(["train"])


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jittor-lora {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb, capsys):
    assert main([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: jittor-lora {verb}") and "%%" not in out and not err


def test_help_lists_the_verbs(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n    {verb} " in out for verb in VERBS)


def test_no_verb(capsys):
    assert main([]) == 2
    assert "usage: jittor-lora" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["trian"], "no such verb: 'trian'; did you mean train?"),
    (["train", "--lora-rank", "3"], "no such flag: --lora-rank; did you mean --lora-r"),
    (["train", "--lr=3"], "no such flag: --lr; did you mean --learning-rate?"),
    (["train", "--outptu", "x", "--no-qv-onyl"], "no such flag: --no-qv-onyl; did you mean --no-qv-only?"),
    (["train", "my data.json"], "'my data.json' belongs to no flag"),
    (["train", "--max-train"], "argument --max-train: expected one argument"),
    (["train", "--resume", "--overwrite"], "not allowed with"),
    (["--verbose"], "no such flag: --verbose"),
])
def test_mistakes(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jittor-lora: ") and message in err and not out
    assert "Traceback" not in err and len(err.splitlines()) <= 4


def test_abbreviations_are_not_taken(capsys):
    assert main(["train", "--lora-drop", "0"]) == 2
    assert "did you mean --lora-dropout?" in capsys.readouterr().err


def test_user_error(monkeypatch, capsys):
    assert failing(monkeypatch, UserError("r.yaml: wrong.")) == 2
    assert capsys.readouterr().err == "jittor-lora: r.yaml: wrong.\n"


@pytest.mark.parametrize("number, word", [
    (errno.ENOSPC, "Free space"), (errno.EROFS, "writable"), (errno.EACCES, "permissions"),
    (errno.ENOENT, "No such"),
])
def test_faults_of_the_machine(number, word, monkeypatch, capsys):
    assert failing(monkeypatch, OSError(number, os.strerror(number), "/data/x")) == 2
    err = capsys.readouterr().err
    assert err.startswith("jittor-lora: /data/x: ") and word in err and len(err.splitlines()) == 1


def test_out_of_memory(monkeypatch, capsys):
    assert failing(monkeypatch, MemoryError()) == 2
    assert "memory" in capsys.readouterr().err


def test_interrupted(monkeypatch, capsys):
    assert failing(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_interrupted_while_another_error_is_on_its_way(monkeypatch, capsys):
    # A compiler that Jittor started gets a terminal's Ctrl-C too, and its failure may arrive before Python's interrupt.
    class CompilerKilled(RuntimeError):
        def __str__(self):
            signal.raise_signal(signal.SIGINT)
            return "killed"

    assert failing(monkeypatch, CompilerKilled()) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


@pytest.mark.parametrize("error", [
    ZeroDivisionError("x"), OSError("no number"), OSError(errno.EINVAL, "Invalid argument"),
])
def test_a_bug_shows_its_traceback(error, monkeypatch, capsys):
    assert failing(monkeypatch, error) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "Please report it" in err


def test_reader_of_the_output_goes_away():
    script = "import sys; from jittor_lora.cli import main as m, train; train.run = lambda args: print('x') or 0; " \
             "sys.stdin.read(); sys.exit(m.main(['train']))"
    process = subprocess.Popen([sys.executable, "-c", script],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    process.stdin.close()  # only now does it print
    err = process.stderr.read()
    assert process.wait() == 141 and err == ""


def test_output_that_is_not_utf8():
    script = "import sys; from jittor_lora.cli import main as m, train; " \
             "train.run = lambda args: print('\\u6c34') or 0; sys.exit(m.main(['train']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)})
    assert (done.returncode, done.stdout) == (0, "\\u6c34\n"), done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_no_heavy_module(verb):
    script = "import sys; from jittor_lora.cli.main import main; code = main([sys.argv[1], '--help']); " \
             "heavy = {'jittor', 'numpy', 'tokenizers', 'matplotlib', 'torch', 'fastapi'} & set(sys.modules); " \
             "sys.exit(f'imports {heavy}' if heavy else code)"
    done = subprocess.run([sys.executable, "-c", script, verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lines_of_help(capsys, *words):
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("words", [*((verb,) for verb in VERBS), *(("adapter", action) for action in ACTIONS)],
                         ids=" ".join)
def test_help_fits_a_narrow_terminal(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    assert [line for line in lines_of_help(capsys, *words) if len(line) > 40] == []
    monkeypatch.setenv("COLUMNS", "200")
    assert sum(line.startswith("usage: ") for line in lines_of_help(capsys, *words)) == 1


def test_libraries_survive_variables_set_for_other_programs(tmp_path):
    (tmp_path / "loss.txt").write_text("3\n2\n")
    rc = tmp_path / "matplotlibrc-of-windows"
    rc.write_bytes("font.sans-serif: SimHei  # 黑体\n".encode("gbk"))
    script = ("import sys; from jittor_lora.system import runtime; from jittor_lora.cli.main import main\n"
              "codes = [main(['plot', '--train-loss', 'loss.txt', '--output', 'loss.png']), main(['doctor'])]\n"
              "with runtime.undisturbed_libraries():\n"
              "    import huggingface_hub.constants, numpy, tqdm, jittor_lora.formats.tokenizer\n"
              "    tqdm.tqdm(total=3, file=sys.stderr).update()\n"
              "sys.exit(f'{codes}' if codes[0] else 0)")
    odd = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(rc), "TQDM_ASCII": "1",
           "MPLCONFIGDIR": "/proc/nowhere", "TQDM_MININTERVAL": "often", "TQDM_NCOLS": "wide", "TQDM_FOO": "1",
           "HF_HUB_DOWNLOAD_TIMEOUT": "long", "HF_HUB_ETAG_TIMEOUT": "1.5", "NPY_PROMOTION_STATE": "strong",
           "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "many", "TOKENIZERS_PARALLELISM": "maybe",
           "PYDANTIC_DISABLE_PLUGINS": "1", "OPENBLAS_NUM_THREADS": "x", "HF_HUB_VERBOSITY": "loud"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, **odd, "PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "HF_HUB_DOWNLOAD_TIMEOUT: expected a whole number of seconds, found 'long'; it is not used." in done.stderr
    assert (tmp_path / "loss.png").is_file()


def test_the_environment_is_restored(monkeypatch, capsys):
    values = {"MPLBACKEND": "agg", "TQDM_NCOLS": "60", "TQDM_DISABLE": "1", "HF_HUB_ETAG_TIMEOUT": "x"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MATPLOTLIBRC", raising=False)
    before = dict(os.environ)
    with runtime.undisturbed_libraries():
        assert {name for name in values if name in os.environ} == {"TQDM_DISABLE"}
    assert main(["--version"]) == 0 and dict(os.environ) == before


def test_python_m():
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jittor-lora {__version__}\n", "")
    done = command("train", "--lora-r", "0")
    assert done.returncode == 2 and "lora_r (--lora-r)" in done.stderr
