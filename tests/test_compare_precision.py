"""`scripts/compare_precision.py`, in miniature."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.support.goldens import ROOT
from tests.support.tiny import SEGMENT, make_base, make_voice

sys.path.insert(0, str(ROOT / "scripts"))
import compare_precision
from compare_precision import COMPARED, Run, compare


def run_of(value: float, precision: str = "fp32") -> Run:
    return Run(precision, 0, dict.fromkeys(COMPARED, value), True, [])


@pytest.mark.parametrize(("value", "passes"), [(2.0, True), (3.9, True), (4.1, False)])
def test_within_two_deviations(value: float, passes: bool) -> None:
    found = compare([run_of(1.0), run_of(2.0), run_of(3.0)], run_of(value, "bf16"))
    assert set(found) == set(COMPARED)
    assert all(loss["passed"] == passes for loss in found.values())
    assert found["loss_mel"]["mean"] == 2.0
    assert found["loss_mel"]["deviation"] == 1.0


@pytest.mark.slow
def test_runs_are_made_and_compared(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    voice = make_voice(tmp_path / "clips", clips=3)
    output = tmp_path / "told.json"
    app = typer.Typer()
    app.command()(compare_precision.main)
    options = ["--voice", str(voice), "--base", str(tmp_path / "base"), "--output", str(output)]
    options += ["--steps", "4", "--batch-size", "1", "--seeds", "2"]
    done = CliRunner().invoke(app, [*options, "--segment-size", str(SEGMENT)])
    report = json.loads(output.read_text())
    assert [run["precision"] for run in report["runs"]] == ["fp32", "fp32", "bf16"]
    assert [run["seed"] for run in report["runs"]] == [1234, 1235, 1234]
    assert done.exit_code == (0 if report["passed"] else 1), done.output
    assert "loss_mel" in done.output
