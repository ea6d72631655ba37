"""A fine-tune from Python: what ends a run early, and what it must not go on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

import mlx_vits
from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.finetune import sovits_stage
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice


class Place(NamedTuple):
    """A base and a voice beside each other."""

    root: Path
    voice: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    root = tmp_path_factory.mktemp("finetune")
    make_base(root / "base")
    return Place(root, make_voice(root / "clips"))


def _options(place: Place, output: str, **training: Any) -> finetune.FinetuneOptions:
    quick = {"steps": 3, "batch_size": 2, "segment_size": SEGMENT} | training
    return finetune.FinetuneOptions(
        voice="clips",
        data=place.voice,
        base=choose_base(str(place.root / "base")),
        output=place.root / "runs" / output,
        training=VITSTrainingConfig(**quick),
        save_every=1,
    )


def test_a_voice_that_falls_silent_ends_the_run_and_keeps_the_last_good_weights(
    place: Place, monkeypatch: Any
) -> None:
    """At the first listening, with no checkpoint in between: the plan's own case, at step 50."""
    monkeypatch.setattr(sovits_stage, "EARLY_STEP", 2)
    read = VITSTrainer._read

    def fading(self: VITSTrainer, begun: Any, **options: Any) -> Any:
        record = read(self, begun, **options)
        if self.place.step == 2:
            post = self.generator.dec.conv_post
            post["weight"] = post["weight"] * 0.01
        return record

    monkeypatch.setattr(VITSTrainer, "_read", fading)
    options = replace(_options(place, "silent"), save_every=100)
    with pytest.raises(
        UserError, match=r"fell silent .* at step 2\. The weights of step 0 are kept"
    ):
        finetune.start(options, Silent())
    assert mlx_vits.load(options.output).info == "1epoch_0iteration"
    monkeypatch.undo()
    finetune.resume(options.output, Silent())
    assert mlx_vits.load(options.output).info == "1epoch_3iteration"


@pytest.mark.parametrize("rate", [1e30, 1e6])
def test_a_run_that_diverges_ends_and_keeps_the_last_good_weights(
    place: Place, rate: float
) -> None:
    options = _options(place, f"diverged{rate}", lr_g=rate, lr_d=rate, steps=6)
    with pytest.raises(UserError, match=r"The weights of step 0 are kept"):
        finetune.start(options, Silent())
    voice = load_file(options.output / "clips.safetensors")
    assert max(np.abs(array).max() for array in voice.values()) < 100
    for line in (options.output / "scores.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_run_whose_base_changed_is_not_resumed(place: Place, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    options = _options(place, "moved", steps=1)
    base = choose_base(str(tmp_path / "base"))
    finetune.start(replace(options, base=base), Silent())
    make_base(tmp_path / "new", seed=5)
    generator = tmp_path / "new" / "generator.safetensors"
    generator.replace(tmp_path / "base" / "generator.safetensors")
    with pytest.raises(CheckpointError, match="is not the file that the run"):
        finetune.resume(options.output, Silent())


def test_a_missing_discriminator_is_said_aloud(place: Place) -> None:
    said: list[str] = []

    class Listening(Silent):
        def warn(self, text: str) -> None:
            said.append(text)

    options = _options(place, "fresh", steps=1)
    base = replace(options.base, discriminator=None)
    finetune.start(replace(options, base=base), Listening())
    assert any("no pretrained discriminator" in text for text in said)


def test_a_moved_run_goes_on_with_its_own_data(place: Place) -> None:
    """Another run has taken its place since; its data are other data."""
    finetune.start(_options(place, "first", steps=1), Silent())
    clips = make_voice(place.root / "other clips", clips=4)
    options = replace(_options(place, "first", steps=1), data=clips)
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    finetune.start(options, Listening())
    moved = next(Path(s.split(" in ")[1].rstrip(".")) for s in said if "is kept in" in s)
    verdict = finetune.resume(moved, Silent(), steps=2)
    assert (verdict["steps"], verdict["clips"][0]["name"]) == (2, "clip_4.wav")
    (moved / "prepared" / "2-name2text.txt").write_text("")
    with pytest.raises(UserError, match="is not the data that the run"):
        finetune.resume(moved, Silent(), steps=3)


def test_epochs_of_a_resumed_run_count_even_if_it_had_steps(place: Place) -> None:
    options = _options(place, "epochs", steps=1, batch_size=50)
    finetune.start(replace(options, data=make_voice(place.root / "two", clips=2)), Silent())
    verdict = finetune.resume(options.output, Silent(), epochs=1)
    assert verdict["steps"] == 2  # 100 items in batches of 50
    kept = json.loads((options.output / "run.json").read_text())["options"]["training"]
    assert (kept["epochs"], kept["steps"]) == (1, None)
