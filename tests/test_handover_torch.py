"""Resume files with PyTorch on the other side, by the stand-in of GPT-SoVITS's trainer.

In processes of their own: PyTorch and MLX bring a BLAS each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_vits import finetune
from mlx_vits.checkpoints.run import Place, RunState, read_run_state
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.checkpoints.upstream_optimizer import moments_of
from mlx_vits.checkpoints.upstream_run import (
    LATEST,
    SIDE_FILE,
    Nets,
    read_upstream_run,
    write_upstream_run,
)
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.finetune.handover import hand_over
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.goldens import ROOT
from tests.support.tiny import SEGMENT, Silent, add_speaker_vectors, make_base, make_voice

pytestmark = pytest.mark.torch
G, D = f"G_{LATEST}.pth", f"D_{LATEST}.pth"

# A run of ours that PyTorch trains on for an epoch of two steps, and saves as upstream does.
GO_ON = """
import sys
from pathlib import Path
from tests.support import upstream_train as up

for path in map(Path, sys.argv[1:]):
    trainer = up.resume(path)
    assert trainer.missing == [], trainer.missing
    up.start_schedule(trainer)
    for seed in (1, 2):
        up.update(trainer, seed)
    up.save(path, trainer, trainer.epoch)
"""


def _python(*arguments: str) -> None:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["v2", pytest.param("v2Pro", marks=pytest.mark.slow)])
def handed(request: Any, tmp_path_factory: Any) -> tuple[Path, Path]:
    """A run, and the resume files it was handed over in."""
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("handed")
    base = make_base(root / "base", version=request.param)
    config = base.read_generator().config
    data = prepare_voice(make_voice(root / "clips", 3), root / "data", base, config)
    if config.model.is_pro:
        add_speaker_vectors(data)
    training = VITSTrainingConfig(steps=2, batch_size=2, segment_size=SEGMENT)
    finetune.start(FinetuneOptions("me", data, base, root / "run", training), Silent())
    hand_over(root / "run", root / "logs")
    return root / "run", root / "logs"


def _nets(run: Any) -> Nets:
    config = run.generator.config
    nets = Nets(SynthesizerTrn(config), MultiPeriodDiscriminator(config))
    nets.generator.update(run.trees["generator"], strict=True)
    nets.discriminator.update(run.trees["discriminator"], strict=True)
    return nets


def test_pytorch_finds_every_moment_at_its_tensor(
    handed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, logs = handed
    _python("-m", "tests.support.upstream_train", str(tmp_path), str(logs / G), str(logs / D))
    trees = read_run_state(folder / "checkpoints" / "last.safetensors").trees
    nets = _nets(read_upstream_run(logs))
    for stem, net, states in (
        (G, nets.generator, trees["optimizer_g"]["states"]),
        (D, nets.discriminator, [trees["optimizer_d"]]),
    ):
        theirs = np.load(tmp_path / f"{Path(stem).stem}.npz")
        ours = moments_of(net, states)
        assert {key.partition("/")[2] for key in theirs.files} == set(ours.first)
        for name in ours.first:
            assert theirs[f"step/{name}"] == ours.step == 2
            assert theirs[f"first/{name}"].tobytes() == np.array(ours.first[name]).tobytes()
            assert theirs[f"second/{name}"].tobytes() == np.array(ours.second[name]).tobytes()
        facts = json.loads((tmp_path / f"{Path(stem).stem}.json").read_text())
        assert facts["missing"] == []
        assert facts["epoch"] == 1
        expected = [1e-5, 4e-6, 4e-6, 4e-6] if stem == G else [1e-5]
        assert facts["rates"] == pytest.approx(expected, rel=1e-12)


def _assert_same_content(ours: Any, theirs: Any) -> None:
    assert list(ours["model"]) == list(theirs["model"])
    for name, array in theirs["model"].items():
        assert ours["model"][name].tobytes() == array.tobytes(), name
    assert ours["iteration"] == theirs["iteration"]
    assert ours["learning_rate"] == theirs["learning_rate"]
    states = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert set(states[0]) == set(states[1])
    for index, entry in states[1].items():
        for key, value in entry.items():
            mine = states[0][index][key]
            assert (mine.dtype, mine.tobytes()) == (value.dtype, value.tobytes()), (index, key)
    groups = ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"]
    for mine, other in zip(*groups, strict=True):
        assert {**mine, "lr": 0, "initial_lr": 0} == {**other, "lr": 0, "initial_lr": 0}
        assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12)


def test_a_run_that_pytorch_trained_on_comes_and_goes_unchanged(
    handed: tuple[Path, Path], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    hand_over(handed[0], logs)
    _python("-c", GO_ON, str(logs / G), str(logs / D))
    run = read_upstream_run(logs)
    assert run.side is None
    assert "which GPT-SoVITS has trained since" in run.notes[0]
    assert run.iteration == 1
    info = RunInfo(*(["x"] * 10))
    place = Place(step=4, epoch=run.iteration + 1)
    state = RunState(place, run.trees)
    write_upstream_run(tmp_path / "back", state, _nets(run), run.rates, info)
    for name in (G, D):
        theirs = read_torch_archive(logs / name)
        assert {int(entry["step"]) for entry in theirs["optimizer"]["state"].values()} <= {2, 4}
        ours = read_torch_archive(tmp_path / "back" / name)
        theirs["learning_rate"] = ours["learning_rate"]  # the stand-in writes upstream's own base
        _assert_same_content(ours, theirs)
    assert (tmp_path / "back" / SIDE_FILE).is_file()
