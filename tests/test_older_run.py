"""A run that was begun by an earlier version goes on with this one.

`fixtures/older_run.tar.xz` was written before the nets, the step and the optimizers took the form
they have now: a tiny base without dropout, three prepared clips, and a run stopped after four of
eight steps. `expected.json` holds the losses of the other four, as that version computed them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from mlx_vits import finetune
from mlx_vits.training.log import LOSSES, read_lines
from tests.support.tiny import Silent

ARCHIVE = Path(__file__).parent / "fixtures" / "older_run.tar.xz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    info = tmp_path / "run" / "run.json"
    text = info.read_text(encoding="utf-8").replace("@ROOT@", tmp_path.as_posix())
    info.write_text(text, encoding="utf-8")
    return tmp_path


def test_it_resumes_with_the_losses_that_it_would_have_had(root: Path) -> None:
    finetune.resume(root / "run", Silent(), steps=8)
    found = read_lines(root / "run" / LOSSES)[4:]
    expected = json.loads((root / "expected.json").read_text(encoding="utf-8"))
    assert [record["step"] for record in found] == [5, 6, 7, 8]
    for ours, theirs in zip(found, expected, strict=True):
        # fp32 against fp32 in another order of summation; the mel's floor makes it the widest.
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-6)
