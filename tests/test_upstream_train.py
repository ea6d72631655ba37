"""The stand-in of GPT-SoVITS's trainer (`support/upstream_train.py`), against PyTorch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.support.goldens import GOLDENS, ROOT

# A stand-in changes seldom, and PyTorch takes its time to start.
pytestmark = [pytest.mark.torch, pytest.mark.slow]

GENERATOR = GOLDENS / "names_generator_v2.json"
DISCRIMINATOR = GOLDENS / "names_discriminator_v2.json"

# A run that was saved after epoch 7, and one that never stopped.
SCRIPT = """
import json, sys
from pathlib import Path
from tests.support import upstream_train as up

folder = Path(sys.argv[1])
facts = {}
for net, names in (("G", sys.argv[2]), ("D", sys.argv[3])):
    shapes = {name: (2, 3) for name in json.loads(Path(names).read_text())}
    run = up.build(shapes)
    schedule = up.start_schedule(run)
    for epoch in range(1, 8):
        if epoch > 5:
            up.update(run, epoch)
        if epoch < 7:
            schedule.step()
    up.save(folder / f"{net}_7.pth", run, 7)
    again = up.resume(folder / f"{net}_7.pth", shapes, seed=99)
    same = [(run.state[n] == again.state[n]).all().item() for n in run.state]
    before, after = run.moments(), again.moments()
    kept = list(before) == list(after) and all(
        (before[n][key] == after[n][key]).all() for n in before for key in before[n]
    )
    up.update(run, 8)
    up.update(again, 8)
    equal = all((run.state[n] == again.state[n]).all().item() for n in run.state)
    saved = up.torch.load(folder / f"{net}_7.pth", weights_only=True)["optimizer"]
    numbers = run.numbers()
    facts[net] = {
        "same": all(same), "kept": kept, "equal": equal, "missing": again.missing,
        "without": [n for n in run.names if numbers[n] not in saved["state"]],
        "frozen": {n: numbers[n] for n in run.names if n.startswith("ssl_proj")},
        "in_file": [len(g["params"]) for g in saved["param_groups"]],
        "steps": sorted({int(s["step"]) for s in saved["state"].values()}),
    }
    try:
        up.resume(folder / f"{net}_7.pth", dict(shapes) | {"enc_p.new": (1,)})
        facts[net]["other"] = "taken"
    except ValueError:
        facts[net]["other"] = "refused"
    up.describe(folder / f"{net}_7.pth", folder)
(folder / "G_12.pth").touch()
facts["newest"] = up.newest(folder, "G_*.pth").name
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("run")
    names = [str(GENERATOR), str(DISCRIMINATOR)]
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) | {"folder": folder}
    return found


@pytest.mark.parametrize("net", ["G", "D"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(facts: dict[str, Any], net: str) -> None:
    found = facts[net]
    assert found["same"]
    assert found["kept"]
    assert found["equal"]
    assert found["missing"] == []
    assert found["steps"] == [2]


def test_tensors_are_numbered_as_upstream_numbers_them(facts: dict[str, Any]) -> None:
    found = facts["G"]
    assert found["in_file"] == [649, 1, 108, 14]
    assert found["frozen"] == {"ssl_proj.weight": 647, "ssl_proj.bias": 648}
    assert found["without"] == ["ssl_proj.weight", "ssl_proj.bias"]
    assert facts["D"]["in_file"] == [len(json.loads(DISCRIMINATOR.read_text()))]
    assert facts["D"]["without"] == []


def test_a_file_of_another_model_is_not_taken(facts: dict[str, Any]) -> None:
    assert facts["G"]["other"] == facts["D"]["other"] == "refused"
    assert facts["newest"] == "G_12.pth"


def test_the_rate_decays_twice_over(facts: dict[str, Any]) -> None:
    """Upstream's own quirk: the file's rate is decayed already, and then for every epoch again."""
    found = json.loads((facts["folder"] / "G_7.json").read_text())
    assert found["epoch"] == 8
    base = np.array([1e-4, 4e-5, 4e-5, 4e-5])
    np.testing.assert_allclose(found["rates"], base * 0.999875**7, rtol=1e-9)
    np.testing.assert_allclose(found["rates_of_first_epoch"], base * 0.999875**15, rtol=1e-9)
    rates = json.loads((facts["folder"] / "D_7.json").read_text())["rates"]
    np.testing.assert_allclose(rates, [1e-4 * 0.999875**7], rtol=1e-9)


def test_moments_are_told_by_name(facts: dict[str, Any]) -> None:
    names = json.loads((facts["folder"] / "G_7.json").read_text())["names"]
    with np.load(facts["folder"] / "G_7.npz") as found:
        assert len(found.files) == 3 * (len(names) - 2)
        assert found["first/enc_p.mrte.c_pre.weight"].shape == (2, 3)
        assert found["second/dec.ups.0.weight_g"].min() > 0
        assert found["step/flow.flows.0.pre.bias"] == 2
