"""The original plan's six tests, on the shipped demo: amplitude, convergence, quality, weight
loading, training, compatibility.

One run of 100 steps serves the first three. A step takes one clip and decodes half as much of it as
by default, to keep the suite short.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import mlx_vits
from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base, load_discriminator, load_generator
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.nn.weight_norm import NORM_SCHEMES
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.regularization import effective_weights, take_anchor
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig, freeze_for
from tests.support.goldens import ROOT
from tests.support.tiny import Silent

DEMO = ROOT / "weights" / "demo"
STEPS = 100
CONFIG = VITSTrainingConfig(steps=STEPS, batch_size=1, segment_size=10240)


class Finetune(NamedTuple):
    """The run of 100 steps."""

    folder: Path
    losses: list[dict[str, float]]
    scores: list[dict[str, Any]]
    verdict: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Finetune:
    folder = tmp_path_factory.mktemp("plan") / "demo"
    options = finetune.FinetuneOptions(
        voice="demo",
        data=DEMO / "voice",
        base=choose_base(str(DEMO)),
        output=folder,
        training=CONFIG,
        save_every=50,
        stage="sovits",
    )
    verdict = finetune.start(options, Silent())
    losses, scores = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("losses.jsonl", "scores.jsonl")
    )
    return Finetune(folder, losses, scores, verdict)


def test_amplitude(run: Finetune) -> None:
    """The voice keeps its loudness: within 30 % of the base and above 15,000 from step 50 on."""
    base, *later = run.scores
    assert [score["step"] for score in later] == [50, 100]
    assert base["largest_sample"] > 15000
    for score in later:
        assert score["largest_sample"] > 15000
        assert abs(score["largest_sample"] / base["largest_sample"] - 1) <= 0.30
    # A segment may fall into a pause; most do not.
    assert np.median([record["peak_fake"] for record in run.losses[-50:]]) > 0.3


def test_convergence(run: Finetune) -> None:
    """Every loss stays a number, and the mel loss falls."""
    assert len(run.losses) == STEPS
    for record in run.losses:
        assert all(math.isfinite(value) for value in record.values())
    mel = [record["loss_mel"] for record in run.losses]
    assert np.mean(mel[-20:]) < np.mean(mel[:20])


def test_quality(run: Finetune) -> None:
    """The verdict: nearer to recordings it was never trained on than the base, and as loud."""
    assert run.verdict["clips_are_held_out"]
    assert run.verdict["final_score"]["mel_distance"] < run.verdict["base_score"]["mel_distance"]
    assert run.verdict["better_than_base"], run.verdict["words"]


@pytest.mark.parametrize("scheme", NORM_SCHEMES)
def test_weight_loading(scheme: Any) -> None:
    """Effective weights equal the file's folded ones, in whichever form the model holds them."""
    file = choose_base(str(DEMO)).read_generator()
    model = load_generator(file, scheme)
    stored = {k: np.array(v, dtype=np.float64) for k, v in file.tensors.items()}
    compared = 0
    for path, ours in effective_weights(model).items():
        if f"{path}.weight_v" in stored:
            g, v = stored[f"{path}.weight_g"], stored[f"{path}.weight_v"]
            axes = tuple(range(1, v.ndim))
            theirs = g * v / np.sqrt(np.sum(v**2, axis=axes, keepdims=True))
        else:
            theirs = stored[f"{path}.weight"]
        array = np.array(ours, dtype=np.float64)
        kind = getattr(dict(model.named_modules())[path], "kind", None)
        if kind is not None:
            array = array.transpose((2, 0, 1) if kind == "conv_transpose1d" else (0, 2, 1))
        difference = np.linalg.norm(array - theirs) / np.linalg.norm(theirs)
        assert difference <= 1e-6, path
        compared += f"{path}.weight_v" in stored
    assert compared == sum(name.endswith("weight_v") for name in stored) > 100


def test_training(run: Finetune) -> None:
    """Normed and folded runs start from the same function, learn, and then part."""
    records, weights = {}, {}
    for scheme in ("upstream", "folded"):
        file = choose_base(str(DEMO)).read_generator()
        config = replace(CONFIG, steps=8, weight_norm=scheme, lr_g=1e-4)  # type: ignore[arg-type]
        model = load_generator(file, config.weight_norm)
        freeze_for(model, "all")
        trainer = VITSTrainer(
            model,
            load_discriminator(DEMO / "base" / "discriminator.safetensors", file.config),
            PreparedVoice(run.folder / "prepared", file.config),
            config,
            take_anchor(model),
        )
        records[scheme] = [record.values for record in trainer.steps()]
        weights[scheme] = effective_weights(model)
    first = {scheme: values[0] for scheme, values in records.items()}
    for name in ("loss_mel", "loss_kl", "loss_fm", "loss_d"):
        assert first["folded"][name] == pytest.approx(first["upstream"][name], rel=1e-4)
    assert first["folded"]["grad_norm_g"] != pytest.approx(first["upstream"]["grad_norm_g"])
    for values in records.values():
        assert all(math.isfinite(v) for record in values for v in record.values())
    apart = np.array(weights["folded"]["dec.ups.0"] - weights["upstream"]["dec.ups.0"])
    assert np.abs(apart).max() > 1e-5


@pytest.mark.torch
def test_compatibility(run: Finetune) -> None:
    """PyTorch opens the exported voice, and finds in it what MLX has."""
    pytest.importorskip("torch")
    exported = next(run.folder.glob("demo_e*_s100.pth"))
    script = (
        "import sys, numpy, torch\n"
        "content = torch.load(sys.argv[1], weights_only=True)\n"
        "assert set(content) == {'weight', 'config', 'info'}\n"
        "assert all(t.dtype == torch.float16 for t in content['weight'].values())\n"
        "numpy.savez(sys.argv[2], **{k: t.numpy() for k, t in content['weight'].items()})\n"
    )
    read = run.folder / "read_by_torch.npz"
    command = [sys.executable, "-c", script, str(exported), str(read)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = read_tensors(run.folder / "demo.safetensors").tensors
    theirs = np.load(read)
    assert set(theirs.files) == {name for name in ours if not name.startswith("enc_q")}
    for name in theirs.files:
        assert np.array_equal(theirs[name], np.array(ours[name]).astype(np.float16)), name
    assert mlx_vits.load(exported).version == "v2"
