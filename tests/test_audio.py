"""Spectrogram, mel and audio files.

The goldens' clips come from 22 kHz recordings: above 11 kHz there is almost nothing, and the log
amplifies rounding there. The tolerances are the goldens' README's, from the measured fp32 noise.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from mlx_vits.audio.files import read_audio, read_speech, resample, write_wav
from mlx_vits.audio.spectrogram import (
    _filterbank,
    _hann,
    mel_of_spectrogram,
    mel_spectrogram,
    spectrogram,
)
from mlx_vits.config import DataSection
from mlx_vits.errors import DataError
from mlx_vits.training.losses import mel_loss
from tests.support.goldens import assert_close, golden, last, relative_l2, tensors

DATA = DataSection()


def test_filterbank_and_window() -> None:
    theirs = np.load(golden("mel", "mel_basis.npz"))
    assert_close(_filterbank(DATA), theirs["mel_basis"], atol=1e-8)
    assert_close(_hann(2048), theirs["hann_window"], atol=3e-7)


def test_spectrogram_and_mel() -> None:
    data = tensors("mel", "mel.safetensors")
    spec = spectrogram(data["in/wav"][None], DATA)
    assert_close(last(spec), data["out/spec"], atol=2e-4)
    for mel, name in (
        (mel_spectrogram(data["in/wav"][None], DATA), "out/mel"),
        (mel_of_spectrogram(last(data["out/spec"]), DATA), "out/mel_from_spec"),
    ):
        assert_close(last(mel), data[name], atol=5e-3)
        near = mx.mean((mx.abs(last(mel) - data[name]) <= 1e-3).astype(mx.float32))
        assert near.item() >= 0.999


def test_mel_of_a_segment_and_its_gradients() -> None:
    data = tensors("mel", "mel.safetensors")
    y = data["in/y_slice"]
    ours, theirs = last(mel_spectrogram(y, DATA)), data["out/slice_mel"]
    assert_close(ours, theirs, atol=5e-3)
    assert mx.mean((mx.abs(ours - theirs) <= 1e-3).astype(mx.float32)).item() >= 0.999
    assert_close(ours[1], theirs[1], atol=1e-4)  # broadband noise: no empty bins

    def l1(y: mx.array) -> mx.array:
        return 45 * mel_loss(last(data["in/mel_target"]), mel_spectrogram(y, DATA))

    def product(y: mx.array) -> mx.array:
        return mx.sum(last(mel_spectrogram(y, DATA)) * data["in/mel_cotangent"])

    loss, gradient = mx.value_and_grad(l1)(y)
    assert_close(loss, data["out/l1_mel_loss_x45"][0], rtol=1e-5)
    for ours, name in ((gradient, "l1_mel_grad_y"), (mx.grad(product)(y), "mel_vjp_grad_y")):
        theirs = data[f"out/{name}"]
        assert relative_l2(ours, theirs) <= 5e-3
        assert relative_l2(ours[1], theirs[1]) <= 1e-4


@pytest.mark.parametrize("samples", [705, 1279, 1280, 20480, 20481])
def test_frames_are_whole_hops(samples: int) -> None:
    assert spectrogram(mx.zeros((1, samples)), DATA).shape == (1, samples // 640, 1025)


def test_a_waveform_too_short_to_reflect_is_refused() -> None:
    with pytest.raises(ValueError, match="705 are needed"):
        spectrogram(mx.zeros((1, 704)), DATA)


def test_wav_files_are_16_bit_with_a_plain_header(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    wav = np.sin(np.arange(3200) / 10).astype(np.float32) * 1.5
    write_wav(path, wav, 32000)
    assert path.stat().st_size == 44 + 2 * len(wav)
    read = read_audio(path)
    assert read.rate == 32000
    assert np.abs(read.wav - np.clip(wav, -1, 1)).max() < 1 / 16384


def test_channels_are_averaged_and_rates_changed(tmp_path: Path) -> None:
    path = tmp_path / "stereo.flac"
    left = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 22050)
    wav = read_speech(path, 32000)
    assert abs(len(wav) - 32000) <= 1
    assert abs(np.abs(wav[3200:-3200]).max() - 0.5) < 0.01
    assert resample(wav, 32000, 32000) is wav


def test_what_is_not_a_recording_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    text, empty = tmp_path / "text.wav", tmp_path / "empty.wav"
    text.write_text("this is no sound")
    soundfile.write(empty, np.zeros(0), 16000)
    low = tmp_path / "low.wav"
    soundfile.write(low, np.zeros((8000, 2)), 8000)
    for path, words in (
        (text, "is not audio"),
        (empty, "holds no sound"),
        (low, "8000 Hz"),
        (tmp_path / "nowhere.wav", "no such recording"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            read_speech(path, 32000)
        assert str(path) in str(caught.value)
