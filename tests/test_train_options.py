"""What the options of a fine-tune set, and which win."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_vits import finetune, train
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.training.t2s_trainer import T2STrainingConfig
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.tiny import make_base, make_voice

TRAINING = {
    "--epochs": ("3", "epochs", 3),
    "--steps": ("7", "steps", 7),
    "--batch-size": ("5", "batch_size", 5),
    "--accumulate": ("2", "accumulate", 2),
    "--lr-g": ("2e-5", "lr_g", 2e-5),
    "--lr-d": ("3e-5", "lr_d", 3e-5),
    "--text-low-lr-rate": ("0.3", "text_low_lr_rate", 0.3),
    "--pretrained-reg": ("0.5", "pretrained_reg_strength", 0.5),
    "--blend": ("0.8", "blend", 0.8),
    "--blend-prior": ("0", "blend_prior", 0.0),
    "--segment-size": ("6400", "segment_size", 6400),
    "--seed": ("0", "seed", 0),
    "--train": ("decoder", "train", "decoder"),
    "--weight-norm": ("folded", "weight_norm", "folded"),
    "--no-bias-correction": (None, "bias_correction", False),
    "--precision": ("bf16", "precision", "bf16"),
    "--no-compile": (None, "compiled", False),
    "--checkpoint-activations": ("on", "checkpoint_activations", "on"),
}


class Asked:
    """The command, which only notes the options that it would start a fine-tune with."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        make_base(root / "base")
        self.voice, self.found = make_voice(root / "clips", clips=2), []
        self._base = str(root / "base")
        monkeypatch.setattr(finetune, "start", lambda options, screen: self.found.append(options))

    def options(self, *given: str) -> FinetuneOptions:
        places = ["--data-dir", str(self.voice), "--base", self._base]
        done = CliRunner().invoke(train.app, [*places, *given], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found: FinetuneOptions = self.found.pop()
        return found


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(tmp_path, monkeypatch)


def test_each_option_of_training_sets_what_it_says(asked: Asked) -> None:
    given = [part for flag, (value, *_) in TRAINING.items() for part in (flag, value) if part]
    expected = {name: value for _, name, value in TRAINING.values()}
    assert set(expected) == {field.name for field in fields(VITSTrainingConfig)}
    assert asked.options(*given).training == VITSTrainingConfig(**expected)


def test_without_options_the_defaults_of_the_library_hold(asked: Asked) -> None:
    found = asked.options()
    assert found == FinetuneOptions("clips", asked.voice, found.base, Path("runs/clips"))


def test_other_options_reach_the_run(asked: Asked, tmp_path: Path) -> None:
    given = {"--language": "ja", "--held-out": "0", "--transcripts": "t.list", "--save-every": "9"}
    flat = [part for option in given.items() for part in option]
    found = asked.options(*flat, "--strict", "--tensorboard", "--output", str(tmp_path / "me"))
    assert (found.language, found.held_out, found.transcripts) == ("ja", 0, Path("t.list"))
    assert (found.save_every, found.strict, found.tensorboard) == (9, True, True)
    assert found.output == tmp_path / "me"


def test_the_command_line_wins_over_what_a_voice_suggests(asked: Asked) -> None:
    own = {"steps": 20, "batch_size": 2, "blend": 0.5}
    (asked.voice / "finetune.json").write_text(json.dumps(own))
    assert asked.options().training == VITSTrainingConfig(**own)
    training = asked.options("--blend", "1", "--batch-size", "3").training
    assert (training.steps, training.batch_size, training.blend) == (20, 3, 1.0)
    # A limit in steps would hide the epochs that were asked for.
    assert asked.options("--epochs", "2").training.steps is None
    assert asked.options("--epochs", "2", "--steps", "9").training.steps == 9


def test_options_of_the_gpt_stage_set_what_they_say(asked: Asked) -> None:
    flat = ["--stage", "both", "--gpt-epochs", "7", "--gpt-batch-size", "3", "--gpt-lr", "0.001"]
    found = asked.options(*flat, "--gpt-optimizer", "adamw", "--dpo")
    assert found.stage == "both"
    own = T2STrainingConfig(epochs=7, batch_size=3, lr=0.001, optimizer="adamw", dpo=True)
    assert found.gpt_training == own
    assert found.training == VITSTrainingConfig()


def test_both_stages_share_what_is_not_of_one_alone(asked: Asked) -> None:
    flat = ["--seed", "5", "--pretrained-reg", "0.5", "--precision", "bf16", "--batch-size", "2"]
    found = asked.options(*flat, "--checkpoint-activations", "on", "--no-compile")
    shared = {"seed": 5, "pretrained_reg_strength": 0.5, "precision": "bf16"}
    shared |= {"checkpoint_activations": "on", "compiled": False}
    assert found.gpt_training == T2STrainingConfig(**shared)
    assert found.training == VITSTrainingConfig(batch_size=2, **shared)


def test_a_base_suggests_as_well_and_the_voice_wins(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "base" / "finetune.json").write_text(json.dumps({"blend": 0.5, "steps": 9}))
    (asked.voice / "finetune.json").write_text(json.dumps({"steps": 20}))
    assert asked.options().training == VITSTrainingConfig(blend=0.5, steps=20)
    assert asked.options("--blend", "1").training == VITSTrainingConfig(steps=20)


def test_a_voice_may_suggest_how_long_its_gpt_is_trained(asked: Asked) -> None:
    (asked.voice / "finetune.json").write_text(json.dumps({"steps": 20, "gpt_epochs": 4}))
    found = asked.options()
    assert (found.training.steps, found.gpt_training.epochs) == (20, 4)
    assert asked.options("--gpt-epochs", "6").gpt_training.epochs == 6


@pytest.mark.parametrize(
    ("flag", "value"), [("--stage", "all"), ("--gpt-optimizer", "adam"), ("--gpt-epochs", "0")]
)
def test_values_that_the_gpt_stage_does_not_have(asked: Asked, flag: str, value: str) -> None:
    given = ["--data-dir", str(asked.voice), flag, value]
    done = CliRunner().invoke(train.app, given, catch_exceptions=False)
    assert done.exit_code
    assert flag in done.output
    assert not asked.found
