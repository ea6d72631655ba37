"""Long recordings to slices: sample for sample and span for span those of GPT-SoVITS's slicer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import soxr

from mlx_vits import finetune
from mlx_vits.audio import streams
from mlx_vits.checkpoints.base import find_base
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import Manifest
from mlx_vits.preprocessing.recordings import SliceFile, slice_recordings
from mlx_vits.preprocessing.slicer import SliceSettings, find_slices, frame_levels
from mlx_vits.training.log import LOSSES
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support import upstream_slicer as upstream
from tests.support.goldens import SHARED
from tests.support.tiny import Silent
from tests.support.upstream_dataset import judge, read_wav
from tests.support.upstream_slicer import HOP, RATE, THRESHOLD, WINDOW

LOUD, QUIET = 0.1, 0.003  # RMS, 14 dB above the threshold and 16 dB below
KATHLEEN = SHARED / "voices" / "kathleen"
CRITICAL = (30, 50, 100, 400)  # frames at which the rules change


def build(parts: list[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Noise of so many frames at such a level, one part after the other, `(N,)` float32."""
    random = np.random.default_rng(seed)
    sizes = [round(frames * HOP) for frames, _ in parts]
    levels = np.repeat([np.float32(level) for _, level in parts], sizes)
    return random.standard_normal(sum(sizes), dtype=np.float32) * levels


def random_parts(seed: int, seconds: float) -> list[tuple[float, float]]:
    """Loud and quiet parts in turn, quiet ones mostly near the lengths that matter."""
    random = np.random.default_rng(seed)
    parts: list[tuple[float, float]] = []
    while sum(frames for frames, _ in parts) < seconds * 100:
        near = random.choice([30, 50, 100]) + random.uniform(-8, 8)
        quiet = random.choice([near, random.uniform(1, 30), random.uniform(90, 250)])
        loud = random.choice([random.uniform(2, 100), random.uniform(100, 600)])
        pair = [(loud, LOUD * random.choice([0.5, 1, 2])), (quiet, QUIET)]
        parts += pair if seed % 2 else pair[::-1]
    return parts


def spans_of(levels: np.ndarray, samples: int) -> list[tuple[int, int]]:
    """Upstream's spans; the last may reach a frame too far there, and ends with the recording."""
    return [(a * HOP, min(b * HOP, samples)) for a, b in upstream.kept_frames(levels)]


def record(folder: Path, name: str, wav: np.ndarray, rate: int = RATE) -> Path:
    """Writes what is above full scale, too."""
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / name, wav, rate, subtype="FLOAT", format="WAV")
    return folder / name


def assert_upstreams(folder: Path, made: list[SliceFile], recording: np.ndarray) -> int:
    """The written slices are upstream's, which computes their levels in fp32."""
    expected = upstream.slice_recording(recording, np.float32)
    for ours, theirs in zip(made, expected, strict=True):
        end = min(theirs.end, len(recording))
        assert ours.span == (theirs.start, end)
        assert ours.name == upstream.slice_name(ours.recording, theirs._replace(end=end))
        assert np.array_equal(read_wav(folder / ours.name), theirs.samples), ours.name
    return len(made)


def test_the_second_writing_itself() -> None:
    """By hand: a silence of 70 frames from 450 on; its halves are 450-500 and 470-520."""
    rms = np.full(1000, 1.0)
    rms[450:520] = 0.01
    rms[[460, 485, 515]] = 0.005, 0.001, 0.004
    assert upstream.removed_frames(rms) == [(485, 485)]  # the quietest of both: nothing is lost
    rms[485] = 0.0045
    assert upstream.removed_frames(rms) == [(485, 515)]
    rms[460] = 0.001
    assert upstream.removed_frames(rms) == [(460, 515)]
    rms[:60], rms[965:] = 0.01, 0.01
    rms[[30, 990]] = 0.002
    assert upstream.kept_frames(rms) == [(30, 460), (515, 990)]
    chunk = np.array([1, -0.5, 0.0])
    assert upstream.level_mix(chunk).tolist() == [31947, -15973, 0]  # 0.225 + 0.75
    assert upstream.level_mix(chunk / 2).tolist() == [19660, -9830, 0]  # 0.225 + 0.75 / 2
    assert upstream.level_mix(4 * chunk).tolist() == [26418, -13209, 0]  # 0.225 / 4 + 0.75


@pytest.mark.parametrize("place", ["leading", "middle", "early", "trailing", "all"])
def test_every_length_of_silence(place: str) -> None:
    """Exact run lengths, also those at which the rules change, with dips at every place."""
    for length in range(1, 131):
        random = np.random.default_rng(length)
        quiet = random.uniform(0.0001, 0.9 * THRESHOLD, length)
        before = {"leading": 0, "middle": 410, "early": 390, "trailing": 410, "all": 0}[place]
        after = 0 if place in ("trailing", "all") else 450
        loud = random.uniform(0.05, 0.2, before + after)
        levels = np.concatenate([loud[:before], quiet, loud[before:]])
        samples = (len(levels) - 1) * HOP + length
        assert find_slices(levels, samples, RATE) == spans_of(levels, samples), length


def test_random_levels() -> None:
    """Sequences of runs whose lengths lie at or beside those that matter."""
    cuts = 0
    for seed in range(2000):
        random = np.random.default_rng(seed)
        near = random.choice(CRITICAL, 12) + random.integers(-2, 3, 12)
        other = random.integers(1, 500, 12)
        lengths = np.where(random.random(12) < 0.6, near, other)[: random.integers(1, 13)]
        is_loud = np.repeat(np.arange(len(lengths)) % 2 == seed % 2, lengths)
        quiet = random.uniform(0, 0.9 * THRESHOLD, len(is_loud))
        quiet[random.random(len(quiet)) < 0.3] = 0.0  # equals: the earliest counts
        levels = np.where(is_loud, random.uniform(0.05, 0.3, len(is_loud)), quiet)
        samples = (len(levels) - 1) * HOP + seed % HOP
        spans = find_slices(levels, samples, RATE)
        assert spans == spans_of(levels, samples), seed
        cuts += len(spans)
    assert cuts > 4000


def test_levels_do_not_depend_on_the_blocks() -> None:
    wav = build([(33.3, LOUD), (12.1, QUIET), (40.7, LOUD)])
    whole = frame_levels([wav], WINDOW, HOP)
    np.testing.assert_allclose(whole, upstream.levels(wav), rtol=1e-12)
    for size in (1, 7, 319, 320, 321, 639, 1279, 1280, 1281, 5000, len(wav) - 1):
        blocks = [wav[at : at + size] for at in range(0, len(wav), size)]
        assert np.array_equal(frame_levels(iter(blocks), WINDOW, HOP), whole), size
    for samples in (0, 1, 319, 320, 641, 1279, 1280):
        np.testing.assert_allclose(
            frame_levels([wav[:samples]], WINDOW, HOP), upstream.levels(wav[:samples]), rtol=1e-12
        )


def test_random_recordings() -> None:
    """From samples to spans; blocks of random sizes."""
    cuts = 0
    for seed in range(200):
        wav = build(random_parts(seed, 4 + seed % 3), seed)
        sizes = np.random.default_rng(seed).integers(1, 40_000, 400).cumsum()
        blocks = np.split(wav, sizes[sizes < len(wav)])
        spans = find_slices(frame_levels(blocks, WINDOW, HOP), len(wav), RATE)
        assert spans == spans_of(upstream.levels(wav), len(wav)), seed
        cuts += len(spans)
    assert cuts > 220


@pytest.mark.parametrize("block", [1 << 18, 997, 32_000])
def test_written_slices(block: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Across the borders of blocks, above full scale, and the last one past a whole frame."""
    monkeypatch.setattr(streams, "_BLOCK", block)
    wavs = [build(random_parts(seed, 15.5 + seed % 4), seed) for seed in range(block % 7, 10, 2)]
    wavs[0] *= 1.6 / np.abs(wavs[0]).max()
    wavs[1][-30_000:] = 0
    paths = [record(tmp_path / "in", f"{i}.wav", wav) for i, wav in enumerate(wavs)]
    made = slice_recordings(paths, tmp_path / "out")
    count = 0
    for path, wav in zip(paths, wavs, strict=True):
        own = [piece for piece in made if piece.recording == path.name]
        count += assert_upstreams(tmp_path / "out", own, wav)
    assert count == len(made) >= 2 * len(wavs)
    assert {p.name for p in (tmp_path / "out").glob("*.wav")} == {piece.name for piece in made}


@pytest.mark.slow
def test_many_written_slices(tmp_path: Path) -> None:
    count = 0
    for seed in range(300):
        wav = build(random_parts(seed, 15.2 + seed % 30), seed)
        made = slice_recordings([record(tmp_path, "a.wav", wav)], tmp_path / "out")
        count += assert_upstreams(tmp_path / "out", made, wav)
        shutil.rmtree(tmp_path / "out")
    print(f"\n300 recordings, {count} slices, every sample as upstream's")


def test_recordings_of_one_kind(tmp_path: Path) -> None:
    """All loud, all quiet, silence with a click, and digital silence, of which nothing is left."""
    click = np.zeros(20 * RATE, np.float32)
    click[320_500:320_900] = 0.5
    for wav in (build([(1700, LOUD)]), build([(1700, QUIET)]), click):
        made = slice_recordings([record(tmp_path / "in", "a.wav", wav)], tmp_path / "out")
        assert_upstreams(tmp_path / "out", made, wav)
    nothing = record(tmp_path / "in", "nothing.wav", np.zeros(16 * RATE, np.float32))
    for _ in range(2):
        assert slice_recordings([nothing], tmp_path / "out") == []


def test_a_recording_as_short_as_a_clip_stays_whole(tmp_path: Path) -> None:
    """Up to 15 s, at a slice's level. Upstream would cut it, and fails on the shortest."""
    whole = build([(500, LOUD), (100, QUIET), (500, LOUD), (120, QUIET), (280, LOUD)])
    assert len(whole) == 15 * RATE
    assert len(upstream.slice_recording(whole)) == 3
    for name, wav in (("15s.wav", whole), ("tick.wav", build([(1, LOUD)]))):
        (made,) = slice_recordings([record(tmp_path / "in", name, wav)], tmp_path / "out")
        assert made.span == (0, len(wav))
        levelled = upstream.level_mix(wav, np.float32)
        assert np.array_equal(read_wav(tmp_path / "out" / made.name), levelled)
    longer = np.append(whole, np.float32(0.1))
    assert len(slice_recordings([record(tmp_path / "in", "x.wav", longer)], tmp_path / "out")) == 3


@pytest.mark.parametrize(("rate", "channels"), [(22050, 1), (48000, 1), (44100, 2), (32000, 2)])
def test_other_rates_and_channels(rate: int, channels: int, tmp_path: Path) -> None:
    """Resampled in blocks as the whole array is, but for the last bit."""
    random = np.random.default_rng(rate)
    parts = [(450, LOUD), (80, QUIET), (600, LOUD), (140, QUIET), (480, LOUD)]
    envelope = np.repeat([level for _, level in parts], [round(f * rate / 100) for f, _ in parts])
    wav = (random.normal(0, 1, (len(envelope), channels)) * envelope[:, None]).astype(np.float32)
    made = slice_recordings([record(tmp_path / "in", "a.wav", wav, rate)], tmp_path / "out")
    mono = wav.mean(axis=1, dtype=np.float32)
    whole = mono if rate == RATE else soxr.resample(mono, rate, RATE, quality="HQ")
    expected = upstream.slice_recording(whole, np.float32)
    assert len(made) == len(expected) == 3
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.span == (theirs.start, min(theirs.end, len(whole)))
        got = read_wav(tmp_path / "out" / ours.name).astype(int)
        assert np.abs(got - theirs.samples).max() <= (0 if rate == RATE else 1)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_what_was_cut_before_is_left_alone(tmp_path: Path) -> None:
    wavs = [build([(450 + 50 * i, LOUD), (90, QUIET), (1100, LOUD)], i) for i in range(2)]
    paths = [record(tmp_path / "in", f"{i}.wav", wav) for i, wav in enumerate(wavs)]
    out, said = tmp_path / "out", []
    made = slice_recordings(paths, out, progress=lambda *event: said.append(event))
    assert said == [(1, 2, "0.wav"), (2, 2, "1.wav")]
    before = stamps(out)
    assert slice_recordings(paths, out) == made
    assert stamps(out) == before
    (out / made[0].name).unlink()
    assert slice_recordings(paths, out) == made
    after = stamps(out)
    assert set(after) == set(before)
    assert all(after[piece.name] == before[piece.name] for piece in made[2:])
    changed = wavs[1][8000:]
    record(tmp_path / "in", "1.wav", changed)
    again = slice_recordings(paths, out)
    assert again[:2] == made[:2]
    assert all(stamps(out)[piece.name] == after[piece.name] for piece in made[:2])
    assert_upstreams(out, again[2:], changed)
    loose = slice_recordings(paths, out, SliceSettings(threshold_db=-60))
    assert [piece.span.end for piece in loose] == [len(wavs[0]), len(changed)]
    (out / "slices.json").write_text("{")
    assert slice_recordings(paths, out) == again


def test_a_recording_cut_anew_leaves_none_of_its_old_slices(tmp_path: Path) -> None:
    wav = build([(450, LOUD), (90, QUIET), (1100, LOUD)])
    path, out = record(tmp_path / "in", "a.wav", wav), tmp_path / "out"
    slice_recordings([path], out)
    record(tmp_path / "in", "a.wav", wav[8000:])
    made = slice_recordings([path], out)
    assert {p.name for p in out.glob("*.wav")} == {piece.name for piece in made}


def _bad_recordings(folder: Path) -> list[tuple[Path, str]]:
    folder.mkdir()
    (folder / "notes.wav").write_text("to be recorded")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    wav = build([(1600, LOUD)])
    soundfile.write(folder / "cut.flac", wav, RATE)
    os.truncate(folder / "cut.flac", 500_000)
    wav[300_000] = np.nan
    cures = "give it as .wav, .flac, .ogg or .mp3, install ffmpeg, or take it out"
    unreadable = f"is not audio that can be read; {cures}"
    return [
        (folder / "absent.wav", "cannot be read (No such file or directory)"),
        (folder / "notes.wav", unreadable),
        (folder / "empty.wav", unreadable),
        (folder / "film.mp4", "can only be read with ffmpeg, which is not installed; install it"),
        (record(folder, "silent.wav", wav[:0]), "holds no sound; take it out"),
        (record(folder, "holed.wav", wav), "holds samples that are not numbers; record or export"),
        (folder / "cut.flac", "is damaged; export it again"),
    ]


def test_recordings_that_cannot_be_cut(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for path, words in _bad_recordings(tmp_path / "in"):
        with pytest.raises(UserError) as caught:
            slice_recordings([path], tmp_path / "out")
        assert str(caught.value).startswith(f"{path}: {words}")
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    twins = [record(tmp_path / place, "a.wav", build([(100, LOUD)])) for place in ("x", "y")]
    with pytest.raises(DataError, match=r"^a\.wav: two recordings have this name; rename one$"):
        slice_recordings(twins, tmp_path / "out")


def test_an_mp3_that_was_cut_off_does_not_begin_again(tmp_path: Path) -> None:
    """Its header promises more than it holds. Either is right: what is there, or a refusal."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, build([(500, LOUD)]), RATE)
    os.truncate(path, path.stat().st_size // 2)
    held = len(soundfile.read(path)[0])
    with contextlib.suppress(DataError):
        (made,) = slice_recordings([path], tmp_path / "out")
        assert made.span.end <= held


@pytest.mark.machine
def test_what_libsndfile_cannot_open_goes_through_ffmpeg(tmp_path: Path, monkeypatch: Any) -> None:
    """A stand-in, which leaves a recording where ffmpeg is told to write."""
    wav = build([(450, LOUD), (90, QUIET), (1100, LOUD)])
    decoded = record(tmp_path, "decoded.wav", wav)
    film, program = tmp_path / "film.mp4", tmp_path / "ffmpeg"
    film.write_bytes(b"\0\0\0\x20ftypisom")
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    program.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{decoded}" "$last"\n')
    program.chmod(0o755)
    assert_upstreams(tmp_path / "out", slice_recordings([film], tmp_path / "out"), wav)
    program.write_text("#!/bin/sh\necho 'moov atom not found' >&2\nexit 1\n")
    film.write_bytes(b"another")
    with pytest.raises(DataError, match=r"film\.mp4: holds no sound that ffmpeg can read; export"):
        slice_recordings([film], tmp_path / "out")


class Reading(NamedTuple):
    """Twenty minutes of a reader in one file, and where each clip lies in it."""

    path: Path
    wav: np.ndarray
    clips: list[tuple[str, str, int, int]]  # name, text, first sample, one after the last


@pytest.fixture(scope="module")
def reading(tmp_path_factory: Any) -> Reading:
    """Clips in the order of their list, 0.6 s of digital silence between them."""
    if not KATHLEEN.is_dir():
        pytest.skip("../shared/voices is absent")
    pause = np.zeros(round(0.6 * RATE), np.float32)
    parts, clips, at = [], [], 0
    for line in (KATHLEEN / "transcripts.tsv").read_text("utf-8").splitlines():
        name, text = line.split("\t")
        wav = soundfile.read(KATHLEEN / name, dtype="float32")[0]
        parts += [wav, pause]
        clips.append((name, text, at, at + len(wav)))
        at += len(wav) + len(pause)
        if at >= 20 * 60 * RATE:
            break
    path = tmp_path_factory.mktemp("reading") / "kathleen.wav"
    soundfile.write(path, np.concatenate(parts), RATE, subtype="PCM_16")
    return Reading(path, soundfile.read(path, dtype="float32")[0], clips)


def real_time(what: str, seconds: float, began: float) -> None:
    took = time.perf_counter() - began
    print(f"\n{what}: {seconds:.0f} s in {took:.1f} s, {took / seconds:.4f} of real time")


@pytest.mark.slow
def test_twenty_minutes_of_a_reader(reading: Reading, tmp_path: Path) -> None:
    """Every sample as upstream's, and what is not in a slice is silence."""
    began = time.perf_counter()
    made = slice_recordings([reading.path], tmp_path)
    real_time("slicing", len(reading.wav) / RATE, began)
    count = assert_upstreams(tmp_path, made, reading.wav)
    is_silent = upstream.levels(reading.wav) < THRESHOLD
    at = 0
    for start, end in [*(piece.span for piece in made), (len(reading.wav), 0)]:
        assert is_silent[at // HOP : start // HOP].all()
        at = end
    kept = sum(piece.span.end - piece.span.start for piece in made) / RATE
    print(f"{len(reading.clips)} clips, {count} slices, {kept:.0f} s kept")


def write_transcripts(folder: Path, made: list[SliceFile], reading: Reading) -> None:
    """A clip belongs to the slice that has most of it: one with a long pause is cut in two."""
    texts: list[list[str]] = [[] for _ in made]
    for _, text, start, end in reading.clips:
        shared = [min(end, piece.span.end) - max(start, piece.span.start) for piece in made]
        texts[int(np.argmax(shared))].append(text)
    lines = [f"x/{p.name}|k|EN|{' '.join(t)}\n" for p, t in zip(made, texts, strict=True) if t]
    (folder / "kathleen.list").write_text("".join(lines), "utf-8")


@pytest.mark.slow
def test_from_a_long_recording_to_training(reading: Reading, tmp_path: Path) -> None:
    """Every slice ends in the prepared folder or among those left out; two updates are made."""
    made = slice_recordings([reading.path], tmp_path / "clips")
    write_transcripts(tmp_path / "clips", made, reading)
    base = find_base("demo")
    config, options = base.read_generator().config, PrepareOptions(held_out=4)
    began = time.perf_counter()
    output = prepare_voice(tmp_path / "clips", tmp_path / "out", base, config, options)
    real_time("preparing", sum(p.span.end - p.span.start for p in made) / RATE, began)
    manifest = Manifest.read(output)
    assert manifest is not None
    dropped = {clip.name: clip.reason for clip in manifest.dropped}
    width = config.reduced_dims.ssl_dim
    kept = judge(output, "v2", width), judge(output / "held_out", "v2", width)
    assert [verdict.dropped for verdict in kept] == [{}, {}]
    names = [*kept[0].kept, *kept[1].kept, *dropped]
    assert sorted(names) == sorted(piece.name for piece in made)
    print(f"{len(kept[0].kept)} trained on, left out: {dropped}")
    assert len(dropped) < 0.02 * len(made)
    training = VITSTrainingConfig(steps=2, batch_size=2)
    run = finetune.FinetuneOptions("kathleen", output, base, tmp_path / "run", training)
    finetune.start(run, Silent())
    losses = [json.loads(line) for line in (tmp_path / "run" / LOSSES).read_text().splitlines()]
    assert [(row["step"], np.isfinite(row["loss_total"])) for row in losses] == [(1, 1), (2, 1)]


PEAK = """
import re, sys
from pathlib import Path
from mlx_vits.preprocessing.recordings import slice_recordings

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
slice_recordings([Path(sys.argv[1])], Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
def test_memory_does_not_grow_with_the_recording(reading: Reading, tmp_path: Path) -> None:
    """20 minutes take 77 MB as int16; their levels take 1 MB."""
    rises = {}
    for minutes in (5, 20):
        path = tmp_path / f"{minutes}.wav"
        soundfile.write(path, reading.wav[: minutes * 60 * RATE], RATE, subtype="PCM_16")
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / str(minutes))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rises[minutes] = float(done.stdout)
    print(f"\nMB above the imports, by minutes: {rises}")
    assert rises[20] < rises[5] + 20
