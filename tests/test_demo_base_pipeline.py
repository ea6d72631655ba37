"""The demo base's whole recipe, on made-up sound and with sizes that mean nothing."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.audio.files import read_speech, write_wav
from mlx_vits.audio.spectrogram import spectrogram
from mlx_vits.checkpoints.base import find_base, load_content_encoder, load_discriminator
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.preprocessing.features import speech_features
from scripts.demo_base.__main__ import app
from scripts.demo_base.channels import draw_surroundings
from scripts.demo_base.clips import (
    HELD_OUT,
    TRAINED,
    UNSEEN,
    find_clips,
    frames_at_speed,
    read_clip_list,
)
from scripts.demo_base.distil import Distiller, ExcerptSource, distil_stage
from scripts.demo_base.fit import Paces, measure_paces, steps_that_fit
from scripts.demo_base.running import Clock, read_state
from scripts.demo_base.settings import CONFIG, Settings, Train, read_settings
from scripts.demo_base.store import read_clips
from scripts.demo_base.train import STATE, build_step, rates_at, train_stage
from scripts.demo_base.windows import Window, WindowSource, magnitudes_within, read_window_source
from tests.test_demo_base_heard import write_teacher
from tests.test_demo_base_step import CONFIG as MODEL

pytestmark = pytest.mark.slow  # the recipe as a whole; its parts have tests of their own
TEXTS = "one red cat. two big dogs. the old man sat. a new day came. we go home now. she said no."
SECONDS, RATE = 1.5, 32000
ENCODER = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "speech": {"shortest_frames": 40, "held_out_share": 0.2, "speeds": [1.0, 1.15]},
    "align": {"hidden": 8, "batch_size": 8, "ctc_epochs": 1, "rounds": 1, "round_epochs": 1},
    "distil": {"steps": 2, "batch_size": 2, "frames": 30, "directions": 7},
    "codebook": {"entries": 32, "probe_epochs": 1, "probe_batch_size": 64, "iterations": 3},
    "train": {
        "steps": 4,
        "batch_size": 2,
        "frames": 40,
        "shortest_window": 24,
        "phonemes": 24,
        "segment_size": 3200,
        "adversarial_from": 2,
        "spoken_from": 0.7,
        "warmup_steps": 2,
        "heard_own_share": 0.5,
        "heard_layers": [1],
    },
}


def _write_settings(path: Path) -> Settings:
    values = json.loads(CONFIG.read_text())
    for name, section in SMALL.items():
        values[name] |= section
    dims = MODEL["reduced_dims"] | {"ssl_dim": 12, "codebook_size": 32}
    values |= {"encoder": ENCODER, "model": MODEL | {"reduced_dims": dims}}
    path.write_text(json.dumps(values))
    return read_settings(path)


def _write_voices(folder: Path) -> None:
    random = np.random.default_rng(0)
    texts = [text.strip() for text in TEXTS.split(".") if text.strip()]
    speakers = {
        "kathleen": [("kathleen", texts)],
        "kokoro": [("af_one", texts[:3]), ("am_two", texts[2:5]), ("bm_lewis", ["he ran away"])],
        "ljspeech": [("ljspeech", ["they were late"])],
    }
    seconds = np.arange(int(SECONDS * RATE)) / RATE
    for voice, rows in speakers.items():
        (folder / voice).mkdir(parents=True)
        lines = []
        for pitch, (speaker, said) in enumerate(rows, 3):
            for number, text in enumerate(said):
                phase = 2 * np.pi * 40 * pitch * seconds + 3 * np.sin(7 * seconds + number)
                wav = sum(np.sin(k * phase) / k for k in range(1, 9)) * 0.2
                name = f"{speaker}_{number}.wav"
                wav = wav + 0.01 * random.normal(size=len(wav))
                write_wav(folder / voice / name, wav.astype(np.float32), RATE)
                fields = [name, text] if voice != "kokoro" else [name, speaker, text]
                lines.append("\t".join(fields))
        (folder / voice / "transcripts.tsv").write_text("\n".join(lines) + "\n")


class Made:
    """A run of the recipe."""

    def __init__(self, folder: Path):
        self.folder, self.work, self.voices = folder, folder / "work", folder / "voices"
        self.teacher, self.config = folder / "teacher.safetensors", folder / "config.json"
        _write_voices(self.voices)
        write_teacher(self.teacher)
        self.settings = _write_settings(self.config)

    def run(self, *arguments: str, **options: Path) -> Any:
        paths = {"voices": self.voices, "teacher": self.teacher, "work": self.work}
        paths |= {"config": self.config} | options
        words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        return CliRunner().invoke(app, [*words, *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("demo_base"))
    result = made.run()
    assert result.exit_code == 0, result.output
    return made


def test_the_base_opens(made: Made) -> None:
    voice = mlx_vits.load(str(made.work / "base"))
    assert voice.config.model.version == "v2"
    base = find_base(str(made.work / "base"))
    assert base.discriminator is not None
    assert base.content_encoder is not None
    load_discriminator(base.discriminator, voice.config)
    load_content_encoder(base.content_encoder)
    assert voice.config.train.segment_size == made.settings.model.train.segment_size


def test_the_base_gives_the_codes_it_was_trained_on(made: Made) -> None:
    base = find_base(str(made.work / "base"))
    encoder = load_content_encoder(base.content_encoder)
    model = mlx_vits.load(str(made.work / "base")).model
    clips, codes = read_clip_list(made.work / "clips.json"), read_clips(made.work / "codes.npz", "")
    for clip, own in list(zip(clips, codes["codes"], strict=False))[:3]:
        wav = read_speech(made.voices / clip.voice / clip.name, RATE)
        ssl = speech_features(encoder, wav, RATE, clip.name)
        ssl = np.pad(ssl, [(0, len(own) * 2 - len(ssl)), (0, 0)], mode="edge")
        found = np.array(model.extract_latent(mx.array(ssl)[None]))[0]
        # fp16 weights, and features that were kept as fp16.
        assert np.mean(found == own) > 0.85


def test_the_table_has_every_subject_and_group(made: Made) -> None:
    table = (made.work / "probe.md").read_text()
    for word in ("content encoder", "codes", "teacher", "log-mel", "bm_lewis", "ljspeech"):
        assert word in table
    assert "kathleen, kept out" in table


def test_what_is_there_is_kept(made: Made) -> None:
    times = {path: path.stat().st_mtime_ns for path in made.work.glob("*.npz")}
    result = made.run("prepare", "teach", "align", "distil", "codebook", "train")
    assert result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in made.work.glob("*.npz")} == times


def test_a_resumed_training_is_the_same(made: Made, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(made.work, work)
    (work / STATE).unlink()
    assert not train_stage(made.teacher, work, made.settings, Clock(0))
    assert read_state(work / STATE).step == 1
    assert train_stage(made.teacher, work, made.settings, Clock())
    ours, theirs = (read_tensors(folder / STATE) for folder in (work, made.work))
    assert ours.metadata["step"] == theirs.metadata["step"] == "4"
    for name, tensor in theirs.tensors.items():
        np.testing.assert_array_equal(np.array(ours.tensors[name]), np.array(tensor), err_msg=name)


def test_a_resumed_distillation_is_the_same(made: Made, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(made.work, work)
    (work / "heads.safetensors").unlink()
    shutil.rmtree(work / "encoder")
    assert not distil_stage(work, made.settings, Clock(0))
    assert not (work / "heads.safetensors").exists()
    assert distil_stage(work, made.settings, Clock())
    for name in ("heads.safetensors", "encoder/weights.safetensors"):
        ours, theirs = (read_tensors(folder / name).tensors for folder in (work, made.work))
        for key, tensor in theirs.items():
            np.testing.assert_array_equal(np.array(ours[key]), np.array(tensor), err_msg=key)


PACES = Paces(middle=0.5, spoken=1.5, prior=1.0)  # seconds


@pytest.mark.slow
def test_compiled_the_distiller_is_the_same(made: Made) -> None:
    source, random = ExcerptSource(made.work, made.settings, TRAINED), np.random.default_rng(0)
    kinds = [replace(made.settings, compiled=kind) for kind in (True, False)]
    ours, theirs = (Distiller(settings) for settings in kinds)
    for _ in range(2):
        given = source.draw(random), draw_surroundings(random, made.settings.distil.batch_size)
        found, wanted = ours(*given), theirs(*given)
        for name, value in wanted.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-3), name
    assert float(mx.mean(mx.abs(ours.net.weights - theirs.net.weights))) < 1e-5


def test_fewer_steps_where_they_do_not_fit() -> None:
    train = replace(
        read_settings().train,
        steps=1000,
        adversarial_from=100,
        spoken_from=0.5,
        only_prior_from=0.75,
    )
    assert steps_that_fit(train, PACES, 1200) == steps_that_fit(train, PACES, math.inf) == 1000
    assert steps_that_fit(train, PACES, 500) == 554  # at 7/8 s each, 3 % to spare
    with pytest.raises(UserError, match="too few for the curriculum"):
        steps_that_fit(train, PACES, 150)


def test_all_phases_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], []

    def run(number: int, count: int) -> None:
        ran.append(number)
        now[0] += count * (0.5 if number < 500 else 1.5 if number < 750 else 1.0)

    monkeypatch.setattr("scripts.demo_base.fit.time.monotonic", lambda: now[0])
    train = replace(read_settings().train, steps=1000, spoken_from=0.5, only_prior_from=0.75)
    assert measure_paces(train, run) == PACES
    assert ran == [499, 499, 749, 749, 999, 999]


def test_a_training_that_is_made_to_fit(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, rehearsed = tmp_path / "work", []
    shutil.copytree(made.work, work)
    (work / STATE).unlink()

    def measure(train: Train, run: Any) -> Paces:
        run(train.steps - 1, 1)
        rehearsed.append(train.steps)
        return Paces(20.0, 20.0, 20.0)

    monkeypatch.setattr("scripts.demo_base.fit.measure_paces", measure)
    arguments = ("train", "--fit", "--minutes")
    assert made.run(*arguments, "1.2", work=work).exit_code == 0
    kept = read_settings(work / "config.json")
    assert kept.train.steps == 3
    assert read_state(work / STATE).step == 3
    # The same command again finds it done; without --fit these are other settings.
    assert made.run(*arguments, "1.2", work=work).exit_code == 0
    assert rehearsed == [4]
    assert made.run("train", work=work).exit_code == 1
    # What was rehearsed left no trace: the kept settings alone make the same.
    again = tmp_path / "again"
    shutil.copytree(work, again)
    (again / STATE).unlink()
    assert made.run("train", work=again, config=work / "config.json").exit_code == 0
    ours, theirs = (read_tensors(folder / STATE).tensors for folder in (work, again))
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(np.array(ours[name]), np.array(tensor), err_msg=name)


def test_to_fit_needs_a_time(made: Made) -> None:
    result = made.run("train", "--fit")
    assert result.exit_code == 1
    assert "give --minutes" in result.output


def test_training_may_begin_with_a_base(made: Made) -> None:
    base = made.work / "base"
    step = build_step(made.settings, base=str(base))
    ours, theirs = step.generator.flat.unpack(step.nets["g"].weights), read_state(made.work / STATE)
    mean = step.generator.flat.unpack(theirs.trees["g"]["mean"])
    for name, tensor in mean.items():  # fp16 in the base
        np.testing.assert_allclose(np.array(ours[name]), np.array(tensor), atol=2e-3, rtol=1e-3)
    judge = theirs.trees["d"]["weights"]
    np.testing.assert_allclose(np.array(step.nets["d"].weights), np.array(judge), atol=2e-3)
    with pytest.raises(CheckpointError):
        build_step(read_settings(), base=str(base))


def test_no_text_is_both_learnt_and_measured(made: Made) -> None:
    clips = find_clips(made.voices, made.settings)
    texts = {use: {c.text for c in clips if c.use == use} for use in (TRAINED, HELD_OUT, UNSEEN)}
    assert all(texts.values())
    assert not texts[TRAINED] & (texts[HELD_OUT] | texts[UNSEEN])
    unseen = {clip.speaker for clip in clips if clip.use == UNSEEN}
    assert unseen == {"bm_lewis", "ljspeech"}


def test_a_speaker_to_stay_unseen_has_to_be_there(made: Made) -> None:
    speech = replace(made.settings.speech, unseen_speakers=("bm_louis",))
    with pytest.raises(UserError, match="has no bm_louis"):
        find_clips(made.voices, replace(made.settings, speech=speech))


@pytest.fixture(scope="module")
def source(made: Made) -> WindowSource:
    return read_window_source(made.work, made.settings)


def test_a_window_is_cut_at_one_moment(source: WindowSource) -> None:
    """Spectrogram, wave, code and phoneme of a frame are those of the same time of the clip."""
    frames, start = 32, 10
    for number in (0, len(source.spoken) // 2):  # at the clip's own speed, and at another
        spoken = source.spoken[number]
        window = Window(number, start, frames)
        windows = source.cut([window, window], np.random.default_rng(0), plain=True)
        batch = source.finish(windows, mx.random.key(0))
        clip = spoken.wav[source.reach : -source.reach].astype(np.float32) / 32768
        whole = np.array(spectrogram(mx.array(clip)[None], source.data))[0]
        ours = np.array(batch.spec)[0, :frames]
        np.testing.assert_allclose(ours, whole[start : start + frames], atol=2e-4)
        assert not np.array(batch.spec)[0, frames:].any()
        at = (start + int(windows.starts[0])) * source.data.hop_length
        size = source.settings.train.segment_size
        np.testing.assert_allclose(np.array(batch.wav)[0], clip[at : at + size], atol=1e-6)
        codes = spoken.codes[start // 2 : (start + frames) // 2]
        assert windows.codes[0, : frames // 2].tolist() == codes.tolist()
        assert (windows.codes[0, frames // 2 :] == len(source.book) - 1).all()
        shown = frames_at_speed(start + frames, spoken.speed, len(spoken.labels))[start:]
        for frame, (place, of) in enumerate(zip(windows.places[0], shown, strict=False)):
            label = spoken.labels[of]
            if label:
                heard = spoken.clip.ids[spoken.clip.phones[spoken.places[of]]]
                assert windows.text[0, place] == heard, frame
                assert spoken.clip.sounds[spoken.clip.phones[spoken.places[of]]] == label
            else:
                assert place == -1


def test_windows_that_are_drawn_fit_together(source: WindowSource) -> None:
    for seed in range(20):
        windows = source.draw(np.random.default_rng(seed))
        lengths = windows.mask.sum(axis=(1, 2))
        assert (lengths >= 10).all()
        assert (windows.starts + 5 <= lengths).all()
        rows, frames = np.nonzero(windows.places >= 0)
        places = windows.places[rows, frames]
        assert (windows.text_mask[rows, places, 0] == 1).all()
        assert (windows.mask[rows, frames, 0] == 1).all()
        again = source.draw(np.random.default_rng(seed))
        assert all(np.array_equal(a, b) for a, b in zip(windows[:7], again[:7], strict=True))


def _with(source: WindowSource, **values: Any) -> WindowSource:
    train = replace(source.settings.train, **values)
    entries = np.array(source.book)[:-1]
    return WindowSource(source.spoken, entries, replace(source.settings, train=train))


def test_codes_stray_to_other_entries(source: WindowSource) -> None:
    """Further with more noise; where there is no code there is none, and the melody holds."""
    changed = []
    for far in (0.0, 0.5, 3.0):
        noisy = _with(source, misheard=(far, far), lost_codes=0.3)
        windows = noisy.draw(np.random.default_rng(1))
        own = np.array(noisy.book)[windows.codes]
        found = np.array(noisy.finish(windows, mx.random.key(0)).quantized)
        is_code = windows.codes < len(noisy.book) - 1
        assert not found[~is_code].any()
        book = {entry.tobytes() for entry in np.array(noisy.book)[:-1]}
        assert {entry.tobytes() for entry in found[is_code]} <= book
        changed.append(float((found != own).any(axis=2)[is_code].mean()))
    assert changed[0] == 0 < changed[1] < changed[2]


def test_other_texts_stand_around_a_windows_own(source: WindowSource) -> None:
    crowded = _with(source, further_texts=1.0, whole_text=1.0, no_text=0.0, lost_phonemes=0.0)
    longer = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        windows = crowded.draw(random)
        for row, places in enumerate(windows.places):
            said = int(windows.text_mask[row].sum())
            assert said <= crowded.settings.train.phonemes
            known = places[places >= 0]
            assert (known < said).all()
            assert (np.diff(known) >= 0).all()
            texts = [spoken.clip.ids for spoken in crowded.spoken]
            longer += windows.text[row, :said].tolist() not in texts
    assert longer > 5


def test_the_priors_style_strays(source: WindowSource) -> None:
    noisy = _with(source, style_noise=2.0)
    windows = noisy.draw(np.random.default_rng(1))
    assert np.array(noisy.finish(windows, mx.random.key(0)).style_noise).any()
    plain = noisy.cut([Window(0, 0, 30)], np.random.default_rng(1), plain=True)
    assert not np.array(noisy.finish(plain, mx.random.key(0)).style_noise).any()


def test_spectrograms_are_the_products(source: WindowSource) -> None:
    wav = np.random.default_rng(0).normal(size=(1, 9 * 640)).astype(np.float32) * 0.1
    padded = np.pad(wav, [(0, 0), (source.reach, source.reach)], mode="reflect")
    ours = magnitudes_within(mx.array(padded), source.data)
    theirs = spectrogram(mx.array(wav), source.data)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-5)


def test_the_curriculum() -> None:
    train = replace(read_settings().train, steps=1000, adversarial_from=100)
    first, middle, last = (rates_at(step, train) for step in (0, 500, 999))
    assert (first.pull, last.pull) == (pytest.approx(0.03), 1.0)
    assert first.pull < middle.pull < last.pull
    assert (first.adversarial, middle.adversarial) == (False, True)
    assert (first.spoken, last.spoken) == (0, 48)
    assert last.lr_g < 0.06 * train.lr_g


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("voices", "nowhere", "nowhere: there is no such folder; give --voices"),
        ("teacher", "nothing.safetensors", "nothing.safetensors: there is no such file"),
        ("config", "no.json", "no.json: cannot be read"),
    ],
)
def test_what_is_missing_is_named(
    made: Made, capfd: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    result = made.run("prepare", **{option: Path(value)})
    assert result.exit_code == 1
    assert message in result.output + capfd.readouterr().err


def test_a_stage_names_the_one_before(made: Made, tmp_path: Path) -> None:
    result = made.run("align", work=tmp_path / "new")
    assert result.exit_code == 1
    assert "run the stage `prepare` first" in result.output


def test_other_settings_need_another_folder(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text(made.config.read_text().replace('"seed": 1234', '"seed": 1', 1))
    result = made.run("prepare", config=other)
    assert result.exit_code == 1
    assert "was begun with other settings" in result.output
