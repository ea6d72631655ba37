"""The evaluation of the demo, on made-up sound, made-up scores and a tiny base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from eval_demo import __main__ as command
from eval_demo import hearing, scores
from eval_demo.intervals import bootstrap_interval
from eval_demo.recipes import choose_recipe, make_directions_unit
from eval_demo.results import Comparison, Outcome, compare_minutes, gather, paired_differences
from eval_demo.runs import RESULT, perform_runs, read_result, speech_folder
from eval_demo.settings import (
    BASE,
    CONFIG,
    DEFAULT,
    RECORDING,
    TRAINED,
    Run,
    Settings,
    check_frozen,
    freeze,
    read_settings,
)
from eval_demo.tables import ablation_table, minutes_table, probe_table, write_tables
from eval_demo.words import WordErrors, count_word_errors, spoken_words, word_error_rate
from typer.testing import CliRunner

from mlx_vits.checkpoints.base import Base
from mlx_vits.errors import UserError
from mlx_vits.finetune.options import suggested_options
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.synthesis.scoring import mel_distance
from mlx_vits.training.regularization import effective_weights
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig, freeze_for
from tests.support.tiny import SEGMENT, make_base, make_voice, tiny_config


@pytest.mark.parametrize(
    ("said", "heard", "errors", "words"),
    [
        ("The cat sat.", "the cat sat", 0, 3),
        ("the cat sat", "the cat", 1, 3),
        ("the cat sat", "the black cat sat", 1, 3),
        ("the cat sat", "a dog sat", 2, 3),
        ("the cat sat", "", 3, 3),
        ("of about fourteen fifty-five,", "of about 1455", 0, 5),
        ("the fifteenth century", "the 15th century", 0, 3),
        ('the "forty-two line Bible"', "The 42-line Bible.", 0, 5),
        ("on December one, nineteen sixty-three", "on December 2, 1963", 1, 6),
        ("Oswald's wife didn't", "oswalds wife didnt", 0, 3),
        ("twelve hundred men", "1,200 men", 3, 3),  # as "one thousand, two hundred"
        ("Mr. Smith", "mister smith", 0, 2),
    ],
)
def test_word_errors(said: str, heard: str, errors: int, words: int) -> None:
    assert count_word_errors(said, heard) == (errors, words)


def test_the_rate_is_over_all_words_not_over_clips() -> None:
    assert word_error_rate([WordErrors(1, 1), WordErrors(0, 9)]) == pytest.approx(0.1)
    assert spoken_words("£5, and — so on…") == ["five", "pounds", "and", "so", "on"]
    with pytest.raises(ValueError, match="no word"):
        word_error_rate([WordErrors(0, 0)])


def test_the_interval_of_known_data() -> None:
    draws = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found = bootstrap_interval(draws.tolist(), 1, 4000)
    assert found.mean == pytest.approx(draws.mean())
    # Of a normal mean the percentile interval is its mean and 1.96 standard errors either way.
    error = draws.std() / np.sqrt(len(draws))
    assert found.low == pytest.approx(draws.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(draws.mean() + 1.96 * error, abs=0.1 * error)
    assert found == bootstrap_interval(draws.tolist(), 1, 4000)
    assert bootstrap_interval([5.0, 5.0, 5.0], 1, 100) == (5.0, 5.0, 5.0)
    with pytest.raises(ValueError, match="too few"):
        bootstrap_interval([1.0], 1, 100)


def test_differences_are_paired_and_leave_out_what_was_not_measured() -> None:
    assert paired_differences([1.0, None, 3.0], [2.0, 5.0, None]) == [1.0]
    with pytest.raises(ValueError, match="zip"):
        paired_differences([1.0], [1.0, 2.0])


# Sound


def test_the_mel_distance_of_equal_sound_is_zero_and_grows_with_the_level() -> None:
    config = tiny_config()
    sound = np.random.default_rng(1).normal(0, 0.05, 16000).astype(np.float32)
    assert mel_distance(sound, sound, config) == 0
    # Twice as loud is ln 2 further in every band.
    assert mel_distance(2 * sound, sound, config) == pytest.approx(np.log(2), abs=0.01)


# Settings


class Place(NamedTuple):
    """A tiny base, a folder of voices with one voice, and settings for both."""

    root: Path
    base: Base
    voices: Path
    config: Path

    @property
    def output(self) -> Path:
        return self.root / "out"

    def settings(self) -> Settings:
        return read_settings(self.config)


def _make_place(root: Path) -> Place:
    base = make_base(root / "base")
    voices = root / "voices"
    clips = make_voice(voices / "tiny", clips=5)
    lines = (clips / "transcripts.tsv").read_text().splitlines()
    names = [line.split("\t")[0] for line in lines]
    quick: dict[str, Any] = {"segment_size": SEGMENT}
    port = {"train": "decoder", "weight_norm": "plan", "bias_correction": False}
    values = {
        "base": str(root / "base"),
        "base_sha256": {},
        "clips_sha256": {},
        "seeds": [7, 8],
        "training": {"steps": 2, "batch_size": 2, "blend": 0.5},
        "probe_every": 1,
        "probed": names[3],
        "pictured": names[4],
        "bootstrap": {"seed": 1, "resamples": 200},
        "ablation": "first",
        "minutes": {
            "first": {
                "folder": "tiny",
                "train": " ".join(names[:3]),
                "held_out": " ".join(names[3:]),
            }
        },
        "cells": {
            DEFAULT: quick,
            "port": quick | port | {"fresh_discriminator": True, "unit_directions": True},
        },
    }
    (root / "config.json").write_text(json.dumps(values))
    return Place(root, base, voices, root / "config.json")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return _make_place(tmp_path)


def _change(place: Place, **changes: Any) -> None:
    values = json.loads(place.config.read_text())
    place.config.write_text(json.dumps(values | changes))


def test_the_shipped_settings() -> None:
    settings = read_settings(CONFIG)
    runs = settings.runs()
    assert len(settings.seeds) == 3
    assert len(settings.minutes) == 4
    assert len(settings.minutes["ljspeech-1"].held_out) == 23
    fine_tunes = [run for run in runs if run.seed is not None]
    assert len(fine_tunes) == 3 * len(settings.cells) + 3
    assert len({run.name for run in runs}) == len(runs)
    base = Base("base", Path("g"), Path("d"), None)
    for run in fine_tunes:
        choose_recipe(settings, run, base)
    port = choose_recipe(settings, Run("ljspeech-1", "port-1e-4", 1), base)
    assert port.base.discriminator is None
    assert port.trainer is not VITSTrainer
    assert port.training == VITSTrainingConfig(
        steps=200,
        batch_size=2,
        seed=1,
        lr_g=1e-4,
        lr_d=1e-4,
        train="decoder",
        weight_norm="plan",
        bias_correction=False,
        blend_prior=1.0,
    )
    default = choose_recipe(settings, Run("ljspeech-1", DEFAULT, 1), base)
    demo = ROOT / "weights" / "demo"
    own = suggested_options(demo / "base") | suggested_options(demo / "voice")
    own.pop("gpt_epochs")
    assert default == (base, VITSTrainingConfig(seed=1, **own), VITSTrainer)
    assert settings.training == own
    for name, changes in settings.cells.items():
        if name not in (DEFAULT, "blend-0.5"):  # what they do shows whole
            assert changes["blend"] == changes["blend_prior"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ablation": "none"}, "none"),
        ({"probed": "stranger.wav"}, "stranger.wav"),
        ({"cells": {}}, DEFAULT),
        ({"cells": {DEFAULT: {}, "odd": {"speed": 3}}}, "speed"),
        ({"extra": 1}, "extra"),
        ({"minutes": {"first": {"folder": "a", "train": "x y", "held_out": "y"}}}, "y"),
    ],
)
def test_settings_that_do_not_fit(place: Place, changes: dict[str, Any], words: str) -> None:
    _change(place, **changes)
    with pytest.raises(UserError, match=words):
        place.settings()


def test_nothing_runs_before_the_base_is_frozen_nor_with_another(place: Place) -> None:
    with pytest.raises(UserError, match="not frozen"):
        check_frozen(place.settings())
    frozen = freeze(place.settings(), place.voices)
    assert frozen == place.settings()
    check_frozen(frozen, place.voices)
    freeze(frozen, place.voices)  # the same once more is no change
    discriminator = place.base.discriminator
    assert discriminator is not None
    discriminator.write_bytes(discriminator.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"discriminator.safetensors: is not what"):
        check_frozen(frozen)
    with pytest.raises(UserError, match="--again"):
        freeze(frozen, place.voices)
    again = freeze(frozen, place.voices, again=True)
    assert again.base_sha256 != frozen.base_sha256
    check_frozen(again)


def test_another_transcript_is_refused(place: Place) -> None:
    frozen = freeze(place.settings(), place.voices)
    path = place.voices / "tiny" / "transcripts.tsv"
    path.write_text(path.read_text().replace("\t", "\tAnd ", 1))
    with pytest.raises(UserError, match="the clips of first are not"):
        check_frozen(frozen, place.voices)


def test_the_command_refuses_in_one_sentence(place: Place) -> None:
    arguments = ["run", "--voices", str(place.voices), "--config", str(place.config)]
    result = CliRunner().invoke(command.app, [*arguments, "--output", str(place.output)])
    assert result.exit_code == 1
    assert "not frozen" in result.output + result.stderr
    freeze(place.settings(), place.voices)
    result = CliRunner().invoke(command.app, [*arguments, "--part", "3/2"])
    assert "--part 3/2" in result.output + result.stderr


# Recipes


def test_unit_directions_leave_the_effective_weights() -> None:
    mx.random.seed(0)
    model = SynthesizerTrn(tiny_config(), "plan")
    freeze_for(model, "decoder")
    before = {name: np.array(w) for name, w in effective_weights(model).items()}
    frozen = np.array(model.enc_q.enc.in_layers[0].weight_v)
    make_directions_unit(model)
    lengths = mx.sqrt(mx.sum(mx.square(model.dec.ups[0].weight_v), axis=(0, 1)))
    np.testing.assert_allclose(np.array(lengths), 1, rtol=1e-5)
    for name, weight in effective_weights(model).items():
        np.testing.assert_allclose(np.array(weight), before[name], rtol=1e-5, atol=1e-7)
    assert np.array_equal(np.array(model.enc_q.enc.in_layers[0].weight_v), frozen)


UNIT_AFTER_A_STEP = """
import sys
sys.path.insert(0, sys.argv[1])
import mlx_vits
import mlx.core as mx
from eval_demo.recipes import UnitDirectionStep
from mlx_vits.tools.bench import work
from mlx_vits.accel.compilation import stop_fusing
from tests.support.tiny import tiny_config

assert stop_fusing()
work.Work.config = property(lambda self: tiny_config(self.version))
work.GANStep = UnitDirectionStep
size = work.Work("v2", 2, 1.0)
step = work.make_step(size, compiled=sys.argv[2] == "recorded")
for number in range(2):
    mx.eval(step(work.make_batch(size), mx.random.key(number)), step.state)
v = step.generator.dec.ups[0].weight_v  # (O, K, C), a length for each C
lengths = mx.sqrt(mx.sum(mx.square(v), axis=(0, 1)))
assert mx.allclose(lengths, mx.ones_like(lengths), rtol=1e-5).item(), lengths
"""


@pytest.mark.parametrize("kind", ["eager", "recorded"])
def test_directions_are_unit_after_a_step(kind: str) -> None:
    """Also where the step is recorded and played back, as on a GPU; what is told to MLX stays."""
    command = [sys.executable, "-c", UNIT_AFTER_A_STEP, str(ROOT / "scripts"), kind]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr


# Runs, scores and tables


def _fake_scorers(monkeypatch: Any) -> list[str]:
    """In place of the packages: everything is heard right, and louder is better."""
    loaded: list[str] = []

    def recogniser(tool: str, cache: Path) -> Any:
        loaded.append(tool)
        return lambda wav: "nothing"

    def speaker(tool: str) -> Any:
        loaded.append(tool)
        return lambda wav: np.array([1.0, 0.0])

    monkeypatch.setattr(scores.hearing, "load_recogniser", recogniser)
    monkeypatch.setattr(scores.hearing, "load_speaker_model", speaker)
    monkeypatch.setattr(
        scores.hearing,
        "load_quality_model",
        lambda: lambda wav: {name: float(np.abs(wav).max()) for name in ("ovrl", "sig", "bak")},
    )
    return loaded


def test_from_runs_to_tables(place: Place, monkeypatch: Any) -> None:
    settings = freeze(place.settings(), place.voices)
    said: list[str] = []
    runs = settings.runs()
    kinds = ("trained", "recording", "base", "default.7")
    assert [run.name for run in runs[:4]] == [f"first.{kind}" for kind in kinds]
    chosen = [run for run in runs if run.seed != 8]
    assert perform_runs(settings, place.voices, place.output, chosen, said.append) == 0
    assert len(said) == len(chosen) == 5
    # What is done is not done again; what is half done is.
    perform_runs(settings, place.voices, place.output, chosen, said.append)
    assert len(said) == 5
    default = Run("first", DEFAULT, 7)
    result = read_result(place.output, default, settings)
    assert result is not None
    assert [probe["step"] for probe in result["probes"]] == [0, 1, 2]
    base = read_result(place.output, Run("first", BASE), settings)
    assert base is not None
    assert result["clips"][0]["largest_sample"] != base["clips"][0]["largest_sample"]
    recording = read_result(place.output, Run("first", RECORDING), settings)
    assert recording is not None
    assert all(clip["mel_distance"] == 0 for clip in recording["clips"])
    kept = sorted(speech_folder(place.output, default).glob("*.flac"))
    rates = [soundfile.info(path).samplerate for path in kept]
    assert rates == [16000, 32000]  # the pictured one is kept whole
    assert perform_runs(settings, place.voices, place.output, runs, said.append, seconds=-1) == 2

    loaded = _fake_scorers(monkeypatch)
    scores.score_runs(settings, place.output, runs, scores.TOOLS, said.append)
    scores.score_runs(settings, place.output, runs, scores.TOOLS, said.append)
    assert sorted(loaded) == ["campplus", "resemblyzer", "sphinx", "whisper"]
    found = gather(settings, place.output)
    assert found[default].overall["whisper"] == 1.0
    assert found[default].overall["campplus"] == 1.0
    assert found[Run("first", BASE)].overall["loudness"] == 1.0
    assert Run("first", TRAINED) in found
    tables = write_tables(settings, place.output)
    assert "5 of 7 runs are finished" in tables
    assert "| `port` | 1 |" in tables
    assert "is 0.0 points above the recordings'" in tables
    assert "| first | mel distance |" in tables

    _change(place, training={"steps": 3, "batch_size": 2, "blend": 0.5})
    with pytest.raises(UserError, match="made with another base"):
        gather(place.settings(), place.output)


def test_a_minute_that_trains_on_the_probed_clips_is_not_probed(place: Place) -> None:
    settings = place.settings()
    first = settings.minutes["first"]
    kept = {"train": " ".join(first.held_out), "held_out": " ".join(first.train)}
    minutes = json.loads(place.config.read_text())["minutes"]
    _change(place, minutes=minutes | {"second": {"folder": "tiny"} | kept})
    settings = freeze(place.settings(), place.voices)
    run = Run("second", DEFAULT, 7)
    assert perform_runs(settings, place.voices, place.output, [run], lambda text: None) == 0
    result = read_result(place.output, run, settings)
    assert result is not None
    assert result["probes"] == []
    assert len(result["clips"]) == len(first.train)


def test_a_prepared_minute_is_only_read(place: Place) -> None:
    settings = freeze(place.settings(), place.voices)
    runs = [Run("first", TRAINED), Run("first", RECORDING)]
    perform_runs(settings, place.voices, place.output, runs[:1], lambda text: None)

    def times() -> dict[Path, int]:
        folders = [place.output / name / "first" for name in ("clips", "prepared")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    assert before
    perform_runs(settings, place.voices, place.output, runs[1:], lambda text: None)
    assert times() == before


def test_processes_that_share_the_cores_say_how_many_threads(monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hearing.count_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert hearing.count_threads() >= 1


def test_scores_of_other_speech_are_made_again(place: Place, monkeypatch: Any) -> None:
    settings = freeze(place.settings(), place.voices)
    run = Run("first", RECORDING)
    perform_runs(settings, place.voices, place.output, [run], lambda text: None)
    _fake_scorers(monkeypatch)
    scores.score_runs(settings, place.output, [run], ("whisper",), lambda text: None)
    assert scores.read_scores(place.output, run, "whisper") is not None
    path = speech_folder(place.output, run) / RESULT
    path.write_text(path.read_text() + "\n")
    assert scores.read_scores(place.output, run, "whisper") is None
    with pytest.raises(UserError, match="--tool nose"):
        scores.score_runs(settings, place.output, [run], ("nose",), lambda text: None)
    with pytest.raises(UserError, match=r"first.trained first"):
        scores.score_runs(settings, place.output, [run], ("campplus",), lambda text: None)


def _outcome(mel: list[float], rms: list[float], stopped: str = "") -> Outcome:
    clips: dict[str, list[float | None]] = {
        "mel_distance": [*mel],
        "rms": [*rms],
        "largest_sample": [16000.0] * len(mel),
    }
    overall = {"mel_distance": sum(mel) / len(mel), "rms": sum(rms) / len(rms)}
    overall["largest_sample"] = 16000.0
    levels = ((0, 20000.0, 100.0), (10, 10000.0, 50.0))
    probes = [{"step": s, "largest_sample": peak, "rms": level} for s, peak, level in levels]
    return Outcome(clips, overall, probes, stopped, "cpu")


def test_the_minutes_comparison(place: Place) -> None:
    found = {
        Run("first", BASE): _outcome([1.0, 1.2], [100.0, 100.0]),
        Run("first", DEFAULT, 7): _outcome([0.9, 1.0], [65.0, 65.0]),
    }
    by_measure = {c.measure: c for c in compare_minutes(place.settings(), found)}
    mel = by_measure["mel_distance"]
    assert mel.is_met
    assert mel.change is not None
    assert mel.change.mean == pytest.approx(-0.15)
    assert by_measure["rms"].is_met is False  # a third quieter
    assert by_measure["largest_sample"].is_met is True


def test_tables() -> None:
    rows = {
        BASE: [_outcome([1.0], [100.0])],
        DEFAULT: [_outcome([0.5], [90.0]), _outcome([0.7], [90.0])],
        "port": [_outcome([1.0], [1.0], stopped="loss_mel is no longer a number at step 3")],
    }
    table = ablation_table(rows, [("mel_distance", "mel", ".2f"), ("whisper", "WER", ".1%")])
    assert table.splitlines() == [
        "| run | seeds | mel | WER |",
        "| --- | --- | --- | --- |",
        "| base | – | 1.00 | – |",
        "| `default` | 2 | 0.60 (0.50 to 0.70) | – |",
        "| `port` (1 of 1 broke off: loss_mel is no longer a number at step 3) | 0 | 1.00 | – |",
    ]
    assert "| `default` | 20,000 / 1.00 | 10,000 / 0.50 |" in probe_table(rows)
    change = bootstrap_interval([-0.25, -0.25], 1, 10)
    line = minutes_table([Comparison("first", "mel_distance", 1.0, 0.75, change, True)])
    expected = "| first | mel distance | 1.000 | 0.750 | -0.250 [-0.250, -0.250] | yes |"
    assert line.splitlines()[-1] == expected
