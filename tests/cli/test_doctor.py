"""``difalign doctor`` shows every finding and ends with 1 if something needed is broken."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from difalign.build import doctor
from difalign.build.doctor import Finding
from difalign.cli.app import app

RUNNER = CliRunner()
SOUND = (Finding("python", "ok", "3.12.1"), Finding("wandb", "note", "not installed", "optional"))
BROKEN = (*SOUND, Finding("torch", "problem", "2.4.0, supported: >=2.11", "pip install 'torch>=2.11'"))


@pytest.mark.parametrize(("findings", "code", "said"), [(SOUND, 0, "0 problems, 1 note"), (BROKEN, 1, "1 problem,")])
def test_exit_code(findings: tuple[Finding, ...], code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    result = RUNNER.invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert said in result.stdout
    assert all(finding.found in result.stdout and finding.remedy in result.stdout for finding in findings)


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: BROKEN)
    result = RUNNER.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    assert found["findings"][-1] == {
        "subject": "torch",
        "level": "problem",
        "found": "2.4.0, supported: >=2.11",
        "remedy": "pip install 'torch>=2.11'",
    }
