"""A run of both stages that is killed again and again ends like the one that never was."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.checkpoints.run import T2S_PARTS, VITS_PARTS, read_run_state
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.training.log import read_lines
from mlx_vits.training.t2s_trainer import T2STrainingConfig
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.goldens import ROOT
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice, tiny_config
from tests.support.tiny_gpt import add_gpt

KILLS = 20
STEPS, SAVE_EVERY, EPOCHS = 24, 4, 11
STAGES = {"last": ("losses.jsonl", VITS_PARTS), "gpt_last": ("gpt_losses.jsonl", T2S_PARTS)}
COMPARED = (
    "losses.jsonl",
    "scores.jsonl",
    "gpt_losses.jsonl",
    "gpt_scores.jsonl",
    "me.safetensors",
)


def options(root: Path, output: Path) -> finetune.FinetuneOptions:
    return finetune.FinetuneOptions(
        voice="me",
        data=root / "prepared",
        base=choose_base(str(root / "base")),
        output=output,
        training=VITSTrainingConfig(steps=STEPS, batch_size=1, segment_size=SEGMENT),
        gpt_training=T2STrainingConfig(epochs=EPOCHS),
        save_every=SAVE_EVERY,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("kills")
    make_base(root / "base")
    add_gpt(root / "base")
    clips = make_voice(root / "clips", clips=5, shortest=2.0)
    held_out = PrepareOptions(held_out=1)
    prepare_voice(
        clips, root / "prepared", choose_base(str(root / "base")), tiny_config(), held_out
    )
    finetune.start(options(root, root / "whole"), Silent())
    return root


def check_kept(run: Path, per_epoch: int) -> None:
    """What was saved is whole, and no step is lost that a checkpoint was due for."""
    due = {"last": SAVE_EVERY, "gpt_last": T2STrainingConfig.save_every * per_epoch}
    for name, (losses, parts) in STAGES.items():
        state = run / "checkpoints" / f"{name}.safetensors"
        if not state.is_file():
            continue
        step = read_run_state(state, parts=parts).place.step
        lines = read_lines(run / losses)
        logged = lines[-1]["step"] if lines else 0
        # The last line may have been written before its checkpoint was.
        assert step >= (logged - 1) // due[name] * due[name]


@pytest.mark.slow
def test_twenty_kills_lose_nothing_that_was_saved(root: Path, tmp_path: Path) -> None:
    chance, run = random.Random(1), tmp_path / "run"
    paths = ("--data-dir", root / "prepared", "--voice", "me", "--base", root / "base")
    new = [*paths, "--output", run, "--steps", STEPS, "--batch-size", 1]
    new += ["--segment-size", SEGMENT, "--save-every", SAVE_EVERY, "--gpt-epochs", EPOCHS]
    whole = read_lines(root / "whole" / "gpt_losses.jsonl")
    kills = 0
    while kills < KILLS:
        given = ["--resume", run] if (run / "run.json").is_file() else new
        command = [sys.executable, "-m", "mlx_vits.train", *map(str, given)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(1.0, 6.0))
        if process.poll() is not None:  # at its end already
            assert process.returncode == 0
            process.wait()
            check_equals(run, root / "whole")
            for path in (run / "checkpoints").iterdir():
                path.unlink()
            continue
        process.kill()
        process.wait()
        kills += 1
        check_kept(run, len(whole) // EPOCHS)
    finetune.resume(run, Silent())
    check_equals(run, root / "whole")


def check_equals(run: Path, whole: Path) -> None:
    for name in COMPARED:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
