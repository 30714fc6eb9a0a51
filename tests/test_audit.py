from __future__ import annotations

import json

import pytest

from programs import load_program

audit = load_program("requirements/audit.py")

GOOD = {"name": "numpy", "version": "1.26.4", "vulns": []}
SKIPPED = {"name": "rich", "skip_reason": "Dependency not found"}
BAD = {"name": "pyyaml", "version": "5.3", "vulns": [{"id": "PYSEC-2021-142", "fix_versions": ["5.4"]}]}


@pytest.mark.parametrize("packages, code, told", [
    ([GOOD], 0, "1 packages audited, 0 vulnerabilities known"),
    ([GOOD, SKIPPED], 0, "NOT audited: rich.\nlock.txt: 1 packages audited"),
    ([GOOD, BAD], 1, "pyyaml 5.3: PYSEC-2021-142, fixed in 5.4"),
])
def test_known_vulnerabilities_decide_the_exit_code(capsys, packages, code, told):
    assert audit.report("lock.txt", code, json.dumps({"dependencies": packages}), "") == code
    assert told in capsys.readouterr().out


def test_unreachable_advisories_are_reported(capsys):
    error = "ERROR:pip_audit._cli:HTTPSConnectionPool(host='a', port=443): Max retries exceeded with url: /x"
    assert audit.report("lock.txt", 1, "", error) == 0
    assert "NOT audited" in capsys.readouterr().out


def test_an_index_without_advisories_is_reported(capsys):
    assert audit.report("lock.txt", 0, json.dumps({"dependencies": [SKIPPED, SKIPPED]}), "") == 0
    assert "NOT audited: the advisories cannot be reached" in capsys.readouterr().out


def test_any_other_failure_fails(capsys):
    assert audit.report("lock.txt", 1, "", "lock.txt: line 3: no hash") == 1
    assert "no hash" in capsys.readouterr().err
