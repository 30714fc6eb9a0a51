import argparse
import io
import json
import sys

import pytest

from jittor_lora.cli import doctor
from jittor_lora.system import diagnostics
from jittor_lora.system.diagnostics import MISSING, OK, WARNING, Check


def run(monkeypatch, checks, *arguments):
    monkeypatch.setattr(diagnostics, "machine_checks", lambda *_: list(checks))
    monkeypatch.setattr(diagnostics, "deep_checks", lambda *_: [Check("Jittor import", MISSING, "segfault")])
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *arguments])
    return args.run(args)


@pytest.mark.parametrize("status, expected", [(OK, 0), (WARNING, 0), (MISSING, 1)])
def test_exit_status(monkeypatch, capsys, status, expected):
    assert run(monkeypatch, [Check("Python", OK, "3.11.7"), Check("MPI", status, "none")]) == expected
    assert ("Not ready" in capsys.readouterr().out) == (expected == 1)


def test_deep_adds_its_checks(monkeypatch, capsys):
    assert run(monkeypatch, [Check("Python", OK, "3.11.7")], "--deep") == 1
    assert "segfault" in capsys.readouterr().out


def test_json_holds_the_checks_and_the_machine(monkeypatch, capsys):
    assert run(monkeypatch, [Check("C++ compiler", MISSING, "no g++", "apt-get install g++")], "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["can_run"] is False
    assert report["checks"] == [{"name": "C++ compiler", "status": "missing", "found": "no g++",
                                 "mend": "apt-get install g++"}]
    assert report["system"]["numpy"]


def test_json_on_a_terminal_that_is_not_utf_8(monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii", errors="backslashreplace"))
    assert run(monkeypatch, [Check("disk", OK, "at /home/é")], "--json") == 0
    sys.stdout.flush()
    assert json.loads(stream.getvalue().decode("ascii"))["checks"][0]["found"] == "at /home/é"


def test_table_aligns_and_keeps_commands_whole():
    command = "apt-get install " + " ".join(f"package-{number}" for number in range(20))
    checks = [Check("Python", OK, "3.11.7"), Check("C++ compiler", MISSING, "no g++", command)]
    lines = doctor.table(checks).splitlines()
    assert lines[0] == "Python        OK       3.11.7"
    assert lines[1] == "C++ compiler  MISSING  no g++"
    assert all(len(line) <= doctor.WIDTH for line in lines)
    assert " ".join("\n".join(lines[2:]).split()) == f"-> {command}"
