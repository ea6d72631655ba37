"""`mlx-vits check` of clips: what is wrong with their sound and texts, found where it was put."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_vits.audio.files import write_wav
from mlx_vits.text.english_words import dictionary
from mlx_vits.tools.check.facts import Verdict, VoiceFacts
from mlx_vits.tools.check.outliers import CLIPPED_SHARE, NOISY_RANGE_DB, far_from_median
from mlx_vits.tools.check.phonemes import ARPABET, LEAST_CORRELATION, is_english, merge_stress
from mlx_vits.tools.check.sound import measure_sound
from tests.support.checking import change_wav, check, run, said
from tests.support.tiny import RATE, hum, make_voice

CLIPS = 8


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return make_voice(tmp_path / "clips", clips=CLIPS)


@pytest.mark.machine
def test_clips_before_they_are_prepared(clips: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    facts, verdict = check(clips)
    assert (facts.is_prepared, facts.alignment, facts.versions) == (False, None, {})
    assert (facts.training.clips, facts.held_out.clips) == (CLIPS - 1, 1)
    assert check(clips, held_out=3)[0].held_out.clips == 3
    assert verdict.word == "too little"

    write_wav(clips / "clip_0.wav", hum(0.2), RATE)
    (clips / "clip_1.wav").write_text("not audio")
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    change_wav(clips / "clip_2.wav", np.zeros_like)
    facts, verdict = check(clips)
    assert [row.rule for row in facts.left_out] == ["cannot be prepared"] * 3
    for row, words in zip(
        facts.left_out, ("0.20 s long", "clip_1.wav: ", "is silent"), strict=True
    ):
        assert words in row.words
    assert facts.training.clips == CLIPS - 4
    assert "3 clips are left out (clip_0.wav, clip_1.wav, clip_2.wav)" in said(verdict)
    assert verdict.status == 0

    lines = "".join(f"clip_{i}.wav\t☃\n" for i in range(CLIPS))
    (clips / "transcripts.tsv").write_text(lines, encoding="utf-8")
    facts, verdict = check(clips)
    assert facts.training.clips == 0
    assert verdict.status == 2
    assert run(clips).exit_code == 2


def test_what_preparing_leaves_out_is_no_end_of_checking(clips: Path) -> None:
    with (clips / "transcripts.tsv").open("a") as file:
        file.write("gone.wav\twords\n")
    (clips / "extra.wav").write_bytes((clips / "clip_0.wav").read_bytes())
    facts, verdict = check(clips, held_out=0)
    assert facts.training.clips == CLIPS
    line, clip = facts.left_out
    assert (line.name, clip.name) == (f"transcripts.tsv line {CLIPS + 1}", "extra.wav")
    assert "lists gone.wav, which is not in the folder" in line.words
    assert "has no line in transcripts.tsv" in clip.words
    assert verdict.status == 0


def test_clipped_noisy_and_crackling_clips(clips: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(CLIPS):  # with a pause, as speech has
        change_wav(clips / f"clip_{index}.wav", lambda wav: np.pad(wav, (0, RATE // 2)))

    def wrap(wav: np.ndarray) -> np.ndarray:
        return (wav * 1.3 / np.abs(wav).max() + 1) % 2 - 1

    change_wav(clips / "clip_0.wav", lambda wav: np.clip(wav, -0.2, 0.2))
    change_wav(clips / "clip_1.wav", lambda wav: wav + 0.05 * random.standard_normal(len(wav)))
    change_wav(clips / "clip_2.wav", wrap)
    change_wav(clips / "clip_3.wav", lambda wav: 0.02 * wav)
    change_wav(clips / "clip_4.wav", lambda wav: wav + 0.05)
    facts, verdict = check(clips, held_out=0)
    sound = facts.sound
    assert sound is not None
    assert sound.clipped == ("clip_0.wav",)
    assert sound.noisy == ("clip_1.wav",)
    assert sound.wrapped == ("clip_2.wav",)
    assert sound.off_level == ("clip_3.wav",)
    assert sound.offset == ("clip_4.wav",)
    for words in ("clipped (clip_0.wav)", "noisy (clip_1.wav)", "crackling", "off centre"):
        assert words in said(verdict)


def test_the_same_twice(clips: Path) -> None:
    shutil.copy(clips / "clip_0.wav", clips / "clip_1.wav")
    shutil.copy(clips / "clip_2.wav", clips / f"clip_{CLIPS - 1}.wav")
    facts, verdict = check(clips)
    same = {row.names: row for row in facts.duplicates if row.what == "recording"}
    assert set(same) == {("clip_0.wav", "clip_1.wav"), ("clip_2.wav", "clip_7.wav")}
    assert not same["clip_0.wav", "clip_1.wav"].same_text
    assert same["clip_2.wav", "clip_7.wav"].across
    assert "same recording with different texts" in said(verdict)
    assert "trained on and held out" in said(verdict)


def test_transcripts_that_do_not_fit(tmp_path: Path) -> None:
    words = [3 + index % 7 for index in range(12)]
    for index, count in enumerate(words):
        write_wav(tmp_path / f"{index:02}.wav", hum(0.36 * count), RATE)

    def look(texts: list[str]) -> tuple[VoiceFacts, Verdict]:
        lines = [f"{index:02}.wav\t{text}\n" for index, text in enumerate(texts)]
        (tmp_path / "transcripts.tsv").write_text("".join(lines))
        return check(tmp_path, held_out=0)

    texts = ["seven " * count for count in words]
    texts[3] = "no."
    facts, verdict = look(texts)
    assert facts.rates["en"].outliers == ("03.wav",)
    assert facts.rates["en"].outside == ("03.wav",)
    assert "listen, and check the transcript" in said(verdict)
    # All lines three clips further on: each could be slow or fast speech, together they cannot.
    facts, verdict = look(texts[3:] + texts[:3])
    assert (facts.rates["en"].correlation or 1) < LEAST_CORRELATION
    assert "do not fit the recordings" in said(verdict)


def test_guessed_words(clips: Path) -> None:
    lines = (clips / "transcripts.tsv").read_text().splitlines()
    lines[0] = "clip_0.wav\tthe Blorptian quizzle"
    (clips / "transcripts.tsv").write_text("\n".join(lines))
    assert set(check(clips)[0].phonemes.guessed) == {"Blorptian", "quizzle"}


def test_bandwidth_is_where_the_recording_ends() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal(RATE).astype(np.float32) * 0.1
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    for edge in (4000, 8000, 11025, 16000):
        wav = np.fft.irfft(np.where(hertz <= edge, spectrum, 0)).astype(np.float32)
        stored = np.trunc(wav * 32768) / 32768  # as upstream stores it
        for heard in (wav, stored.astype(np.float32)):
            assert measure_sound(heard, RATE).bandwidth_hz == pytest.approx(edge, abs=300)


def test_levels_of_known_sounds() -> None:
    time = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    paused = np.concatenate([tone, 1e-4 * (-1.0) ** np.arange(RATE // 4)]).astype(np.float32)
    sound = measure_sound(paused, RATE)
    assert sound.peak == pytest.approx(0.5, abs=1e-3)
    assert sound.noise_db == pytest.approx(-80, abs=0.1)
    assert sound.range_db == pytest.approx(80 - 9.03, abs=0.1)
    assert sound.range_db > NOISY_RANGE_DB
    assert measure_sound(np.clip(hum(1.0), -0.2, 0.2), RATE).clipped > CLIPPED_SHARE
    assert measure_sound(hum(1.0), RATE).clipped < CLIPPED_SHARE
    silent = measure_sound(np.zeros(10, np.float32), RATE)
    assert (silent.clipped, silent.bandwidth_hz) == (0.0, 0.0)


def test_far_from_median() -> None:
    assert far_from_median([1.0, 9.0]) == [False, False]
    values = [10.0, 10.1, 9.9, 10.2, 9.8, 20.0, 5.0]
    assert far_from_median(values) == [False] * 5 + [True, True]
    assert far_from_median(values, below_only=True) == [False] * 6 + [True]
    assert far_from_median([10.0, 10.1, 9.9, 10.2, 9.8, 11.0], factor=1.4) == [False] * 6


def test_arpabet_is_that_of_the_dictionary() -> None:
    used = {phone for phones in dictionary().values() for phone in phones.split()}
    assert {merge_stress(phone) for phone in used} == set(ARPABET)
    assert merge_stress("a1") == "a1"  # Chinese
    assert is_english(["HH", "AH0", "L", "OW1", "!"])
    assert not is_english(["n", "i2", "h", "ao3", "!"])
