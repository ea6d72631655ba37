"""The demo base's content encoder and codebook: excerpts, targets, k-means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.errors import UserError
from scripts.demo_base.channels import (
    NO_LOW_PASS,
    Equaliser,
    draw_surroundings,
    equalise,
    surround,
)
from scripts.demo_base.clips import LABELS
from scripts.demo_base.codebook import fit_book, fit_projection, nearest, pair_frames
from scripts.demo_base.distil import log_mel
from scripts.demo_base.linear import fit_linear
from scripts.demo_base.melody import melody_of
from scripts.demo_base.running import cosine_rate, draw_ahead
from scripts.demo_base.settings import CONFIG, read_settings
from scripts.demo_base.teach import Directions, find_directions, pack_windows
from scripts.demo_base.whisper import WINDOW_FRAMES, Teacher, mel_power

TEACHER = Path(__file__).parents[2] / "shared" / "teacher" / "whisper_base_encoder.safetensors"


def test_kmeans_finds_clusters_and_is_deterministic() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(8, 5)) * 10
    points = (centres[random.integers(8, size=4000)] + random.normal(size=(4000, 5)) * 0.1).astype(
        np.float32
    )
    weights = random.choice([1.0, 3.0], 4000)
    first, again = (fit_book(points, weights, 16, 15, 7) for _ in range(2))
    np.testing.assert_array_equal(first.entries, again.entries)
    np.testing.assert_array_equal(first.counts, again.counts)
    assert first.counts.sum() == pytest.approx(weights.sum())
    apart = np.linalg.norm(points - first.entries[nearest(points, first.entries)], axis=1)
    assert apart.mean() < 0.5
    other = fit_book(points, weights, 16, 15, 8)
    assert not np.array_equal(first.entries, other.entries)


def test_weights_move_an_entry() -> None:
    points = np.array([[0.0], [1.0]], np.float32)
    book = fit_book(points, np.array([1.0, 3.0]), 1, 3, 0)
    np.testing.assert_allclose(book.entries, [[0.75]])


def test_a_linear_probe_separates() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(4, size=1000)
    x = np.eye(6)[labels] * 5 + random.normal(size=(1000, 6)) + 100
    probe = fit_linear(x, labels, 4, epochs=4, batch_size=128, learning_rate=0.03, seed=0)
    assert (probe.logits(x).argmax(axis=1) == labels).mean() > 0.97


def test_a_code_is_of_two_frames() -> None:
    features = np.arange(5)[:, None].repeat(2, axis=1).astype(np.float16)
    assert pair_frames(features, 4).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert pair_frames(features, 6)[-1].tolist() == [4, 4, 4, 4]
    assert pair_frames(features, 7)[:, 0].tolist() == [0, 2, 4, 4]


def test_the_projection_holds_the_head_the_melody_and_the_phones() -> None:
    settings = read_settings()
    random = np.random.default_rng(0)
    labels = [random.integers(LABELS, size=300) for _ in range(2)]
    features = [
        (np.eye(128)[label] * 3 + random.normal(size=(300, 128))).astype(np.float16)
        for label in labels
    ]
    head, melody = (random.normal(size=(n, 128)).astype(np.float32) for n in (88, 2))
    projection = fit_projection(features, labels, np.ones(2), head, melody, settings)
    pairs = np.concatenate([pair_frames(f, 300) for f in features])
    out = projection(pairs)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=0.05)
    mean = (pairs[:, :128] + pairs[:, 128:]) / 2
    mean = mean - np.concatenate(features).astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(out[:, :88], mean @ head.T, atol=1e-2)
    for side in (88, 89):
        sung = mean @ melody[side - 88]
        assert np.corrcoef(out[:, side], sung - sung.mean())[0, 1] > 0.999
    cut = (slice(0, 88), slice(88, 90), slice(90, None))
    parts = [np.square(out[:, part]).sum() for part in cut]
    # Set on single frames; the mean of two neighbours has less of all.
    assert 0.8 < parts[1] / parts[0] / settings.codebook.melody_weight < 1.25
    assert 0.8 < parts[2] / parts[0] / settings.codebook.phone_weight < 1.25


def test_windows_hold_clips_whole() -> None:
    plan = pack_windows([700, 700, 200, 1600])
    assert [[tuple(p) for p in window] for window in plan] == [
        [(0, 0, 700), (1, 700, 700)],
        [(2, 0, 200)],
        [(3, 0, WINDOW_FRAMES)],
    ]


def test_directions_leave_out_where_a_frame_lies() -> None:
    random = np.random.default_rng(0)
    ramp = np.linspace(-5, 5, WINDOW_FRAMES)[:, None] * np.array([1.0, 0, 0, 0])
    starts = [300 * number for number in range(5)] * 8
    clips = [random.normal(size=(300, 4)) * [0.1, 1, 2, 0.1] + ramp[s : s + 300] for s in starts]
    found = find_directions(clips, starts, 2)
    assert isinstance(found, Directions)
    # What speech says lies along axes 2 and 1; the ramp of the position is gone, at the ends too.
    assert np.abs(found.basis[0]).max() < 0.05
    reduced = found.reduce(clips[0], 0).astype(np.float32)
    assert reduced.shape == (300, 2)
    assert np.abs(np.corrcoef(reduced[:, 0], clips[0][:, 2])[0, 1]) > 0.95


def test_schedules_and_order() -> None:
    rates = [cosine_rate(step, 1000, 100, 0.05) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) < 1
    assert rates[-1] == pytest.approx(0.05)
    assert list(draw_ahead(lambda step: step * step, 3, 20)) == [s * s for s in range(3, 20)]
    assert list(draw_ahead(lambda step: step, 5, 5)) == []


def test_equalisers_and_rooms_keep_the_shape() -> None:
    random = np.random.default_rng(0)
    wav = mx.array(random.normal(size=(3, 4000)).astype(np.float32) * 0.1)
    flat = Equaliser(np.zeros((3, 8), np.float32), np.full(3, NO_LOW_PASS, np.float32))
    np.testing.assert_allclose(np.array(equalise(wav, 16000, flat)), np.array(wav), atol=1e-5)
    low = flat._replace(low_pass=np.full(3, 1000.0, np.float32))
    power = np.square(np.abs(np.fft.rfft(np.array(equalise(wav, 16000, low)))))
    assert power[:, 600:].sum() < 1e-3 * power[:, :200].sum()
    around = draw_surroundings(random, 3)
    heard = surround(wav, around, mx.random.key(0))
    assert heard.shape == wav.shape
    assert np.isfinite(np.array(heard)).all()
    same = surround(wav, around, mx.random.key(0))
    assert mx.array_equal(heard, same).item()


def test_a_tone_is_heard_in_its_frame() -> None:
    wav = 1e-2 * np.random.default_rng(0).normal(size=(1, 320 * 10 + 80))
    wav[0, 5 * 320 + 150 : 5 * 320 + 250] = np.sin(np.arange(100) * 2 * np.pi * 1000 / 16000)
    mask = mx.ones((1, 10, 1))
    mel = np.array(log_mel(mx.array(wav.astype(np.float32)), mask))[0]
    assert mel.shape == (10, 80)
    assert mel.max(axis=1).argmax() == 5
    louder = np.array(log_mel(mx.array((wav * 2).astype(np.float32)), mask))[0]
    np.testing.assert_allclose(louder, mel, atol=0.01)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for old, new, message in (
        ('"seed": 1234', '"seeds": 1234', "lacks seed"),
        ('"entries": 1024', '"entries": 512', "codebook_size and entries differ"),
        ('"hidden": 256', '"hidden": 2.5', "hidden is 2.5"),
        ('"only_prior_from": 0.7', '"only_prior_from": 0.1', "learns alone before"),
    ):
        path = tmp_path / "config.json"
        path.write_text(CONFIG.read_text().replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            read_settings(path)


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Teacher(tmp_path / "whisper.safetensors")


@pytest.mark.skipif(not TEACHER.is_file(), reason="the teacher's file is not here")
def test_the_teachers_windows_are_whispers() -> None:
    # Whisper's own front end pads by reflection and takes a frame each 10 ms: an impulse at
    # sample 160 j is the loudest in frame j.
    wav = np.zeros((1, 30 * 16000), np.float32)
    wav[0, 160 * 100] = 1
    power = np.array(mel_power(wav))[0]
    assert power.shape == (3000, 80)
    assert power.sum(axis=1).argmax() == 100
    features = Teacher(TEACHER)(mx.array(power[None, :200]))
    assert features.shape == (1, 100, 512)
    assert np.isfinite(np.array(features)).all()


def test_shipped_settings_are_whole() -> None:
    settings = read_settings()
    assert settings.speech.unseen_speakers == ("bm_lewis",)
    assert "ljspeech" not in settings.speech.weights
    assert replace(settings.train, steps=1).steps == 1


def test_a_melody_is_relative_and_silent_where_nothing_is_voiced() -> None:
    seconds = np.arange(16000) / 16000
    hertz = np.where(seconds < 0.5, 150.0, 150.0 * np.exp(0.2))
    wav = 8000 * np.sin(2 * np.pi * np.cumsum(hertz) / 16000)
    wav[12000:] = 0
    melody = melody_of(wav.astype(np.int16)).astype(np.float32)
    assert melody.shape == (50, 2)
    assert (melody[:35, 0] == 1).all()
    assert (melody[40:] == 0).all()
    low, high = melody[5:20, 1].mean(), melody[28:34, 1].mean()
    assert high - low == pytest.approx(1, abs=0.03)
    assert not melody_of(np.zeros(16000, np.int16)).any()
