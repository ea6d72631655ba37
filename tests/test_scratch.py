"""`--from-scratch`: a voice from random weights, and a base from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import mlx_vits
from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base, find_base
from mlx_vits.checkpoints.codebook import codebook_sha256
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.cli import app
from mlx_vits.config import TrainSection
from mlx_vits.finetune.scratch import scratch_training
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.runs import Stopped
from tests.support.tiny import CONFIG, SEGMENT, Silent, make_base, make_voice

TRAIN = {"segment_size": SEGMENT, "batch_size": 2, "learning_rate": 3e-4, "lr_decay": 0.9}
WIDER = CONFIG["model"] | {"hidden_channels": 16}  # than the base's, as a new base may be


class Place:
    """A base, clips, a configuration of another size, and a run from scratch of two steps."""

    def __init__(self, root: Path):
        self.root, self.clips = root, make_voice(root / "clips", clips=4)
        make_base(root / "base")
        self.config = root / "config.json"
        self.config.write_text(json.dumps(CONFIG | {"train": TRAIN, "model": WIDER}))
        self.run = root / "run"
        done = self.command("--output", str(self.run), "--steps", "2", "--save-every", "1")
        assert done.exit_code == 0, done.output

    def command(self, *options: str, config: str = "config.json", base: str = "base") -> Any:
        given = ["--data-dir", str(self.clips), "--base", str(self.root / base), *options]
        begun = ["finetune", "--from-scratch", str(self.root / config)]
        return CliRunner().invoke(app, [*begun, *given])


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("scratch"))


def test_the_configuration_decides_sizes_and_training(place: Place) -> None:
    voice = mlx_vits.load(place.run)
    assert voice.config.model.hidden_channels == 16
    training = RunInfo.read(place.run).options.training
    assert training["lr_g"] == training["lr_d"] == 3e-4
    assert training["batch_size"] == 2
    assert training["text_low_lr_rate"] == 1
    losses = [json.loads(line) for line in (place.run / "losses.jsonl").read_text().splitlines()]
    assert [line["loss_reg"] for line in losses] == [0, 0]


def test_weights_start_as_upstream_draws_them_and_codes_as_the_base_has_them(place: Place) -> None:
    start = load_file(place.run / "start.safetensors")
    base = load_file(place.root / "base" / "generator.safetensors")
    for name in ("ssl_proj.weight", "quantizer.vq.layers.0._codebook.embed"):
        assert np.array_equal(start[name], base[name])
    assert not start["flow.flows.0.post.weight"].any()
    # PyTorch's default: uniform within 1 / sqrt(fan in), magnitudes those of the directions.
    for name, weight in start.items():
        if name.endswith("weight_v"):
            fan_in = np.prod(weight.shape[1:])
            assert np.abs(weight).max() <= 1 / np.sqrt(fan_in), name
            norm = np.sqrt(np.square(weight).sum(axis=(1, 2), keepdims=True))
            assert np.allclose(start[name[:-1] + "g"], norm), name
    assert abs(start["enc_p.text_embedding.weight"].std() - 1) < 0.05


def test_its_verdict_compares_with_nothing(place: Place) -> None:
    verdict = json.loads((place.run / "verdict.json").read_text())
    assert "random weights, so there is no base to compare with" in verdict["verdict"]
    assert set(verdict["findings"]) == {"loud enough", "mel distance"}
    report = (place.run / "report.html").read_text()
    assert "Voice trained from scratch" in report


def test_a_stopped_run_ends_with_the_same_bits(place: Place, tmp_path: Path) -> None:
    class Stopping(Silent):
        def step(self, record: Any, total: int) -> None:
            if record.place.step == 2:
                raise Stopped

    options = finetune.FinetuneOptions(
        voice="clips",
        data=place.clips,
        base=choose_base(str(place.root / "base")),
        output=tmp_path / "run",
        from_scratch=place.config,
        training=VITSTrainingConfig(**scratch_training(place.config) | {"steps": 2}),
        stage="sovits",
        save_every=1,
    )
    with pytest.raises(Stopped):
        finetune.start(options, Stopping())
    finetune.resume(tmp_path / "run", Silent())
    for name in ("checkpoints/last.safetensors", "clips.safetensors", "losses.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (place.run / name).read_bytes(), name


def test_a_run_becomes_a_base_to_fine_tune_and_to_speak_with(place: Place, tmp_path: Path) -> None:
    base = tmp_path / "new"
    done = CliRunner().invoke(app, ["export", str(place.run), str(base), "--base"])
    assert done.exit_code == 0, done.output
    voice = mlx_vits.load(place.run)
    state = load_file(place.run / "clips.safetensors")
    written = load_file(base / "generator.safetensors")
    assert set(written) == set(state)
    assert all(np.array_equal(written[name], state[name].astype(np.float16)) for name in state)
    stated = json.loads((base / "config.json").read_text())
    assert stated["train"]["lr_decay"] == TrainSection().lr_decay  # a fine-tune would use it too
    found = find_base(str(base))
    assert found.content_encoder is not None
    assert codebook_sha256(mlx_vits.load(base).model) == codebook_sha256(voice.model)
    options = ["--data-dir", str(place.clips), "--base", str(base), "--steps", "1"]
    quick = ["--batch-size", "1", "--segment-size", str(SEGMENT)]
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["finetune", *options, *quick, "--output", str(run)])
    assert done.exit_code == 0, done.output
    assert "no pretrained discriminator" not in done.output


def test_a_base_replaces_nothing(place: Place) -> None:
    done = CliRunner().invoke(app, ["export", str(place.run), str(place.clips), "--base"])
    assert done.exit_code == 1
    assert "is there already" in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": "clips"}, "clips: is not a file"),
        ({"config": "full.json"}, "1024 codes of features 768 wide"),
        ({"base": "wide"}, "the base wide has 32 codes of features 24 wide"),
        ({"config": "odd.json"}, "inter_channels is odd"),
        ({"config": "fast.json"}, "lr_g is"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    place: Place, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    if not (place.root / "wide").exists():
        make_base(place.root / "wide", ssl_dim=24)
    for name, values in {
        "full": {},
        "odd": CONFIG | {"model": CONFIG["model"] | {"inter_channels": 9}},
        "fast": CONFIG | {"train": {"learning_rate": -1.0}},
    }.items():
        (place.root / f"{name}.json").write_text(json.dumps(values))
    done = place.command("--output", str(tmp_path / "run"), **options)
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_options_of_a_fine_tune_are_refused(place: Place, tmp_path: Path) -> None:
    done = place.command("--blend", "0.5", "--output", str(tmp_path / "run"))
    assert done.exit_code == 1
    assert "--blend: cannot be chosen with --from-scratch" in done.output
