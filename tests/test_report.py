"""The report: one page, offline, with everything in it that the run left behind."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from mlx_vits.audio.files import write_wav
from mlx_vits.config import DataSection
from mlx_vits.errors import UserError
from mlx_vits.report.charts import Chart, Line, Mark, draw_chart
from mlx_vits.report.curves import (
    Points,
    decimate,
    log_ticks,
    nice_ticks,
    number,
    smooth,
)
from mlx_vits.report.spectrograms import DECIBELS, colour_map, frequency_rows, log_mel
from mlx_vits.report.writing import write_report

RATE, HOP, BANDS = 32000, 640, 128
TAKES = ("recording", "base", "finetuned")
CLIPS = (("a.wav", "First words"), ("b.flac", "Second words"))
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Page(HTMLParser):
    """Every element with its attributes, all text, and a check that tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sound(seconds: float, seed: int) -> np.ndarray:
    """Something like speech: a gliding harmonic tone in syllables, and a little noise."""
    time = np.arange(int(seconds * RATE)) / RATE
    glide = 2 * np.pi * (140 * time + 20 * np.sin(3 * time))
    tone = sum(np.sin(k * glide) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time))
    return (0.45 * tone * np.abs(np.sin(4 * time)) + noise).astype(np.float32)


def score(step: int, distance: float) -> dict[str, Any]:
    clips = [
        {"name": name, "largest_sample": 20123.0 + i, "rms": 2345.0, "mel_distance": distance}
        for i, (name, _) in enumerate(CLIPS)
    ]
    return {"step": step, "largest_sample": 20124.0, "rms": 2345.0, "mel_distance": distance} | {
        "clips": clips
    }


def loss_line(step: int, constant: bool) -> dict[str, float]:
    names = ("loss_d", "loss_gen", "loss_fm", "loss_mel", "loss_kl", "loss_total")
    norms = ("grad_norm_g", "grad_norm_d", "grad_norm_task")
    wave = 0.0 if constant else np.sin(step) + 1 / step
    values = {name: 20.0 + i + wave for i, name in enumerate(names)}
    values |= {name: 5.0 + i + wave for i, name in enumerate(norms)}
    rest = {"loss_commit": 0.0, "loss_reg": 0.0, "grad_norm_reg": 0.0, "peak_fake": 0.7}
    return values | rest | {"lr_g": 1e-5, "lr_d": 1e-5, "step": step, "epoch": 1}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_run(folder: Path, *, steps: int = 60, constant: bool = False, **changes: Any) -> Path:
    """A finished run's folder; `changes` replace entries of the verdict."""
    (folder / "samples").mkdir(parents=True)
    for index, (name, _) in enumerate(CLIPS):
        for seed, take in enumerate(TAKES):
            wav = sound(0.8 + 0.3 * index, seed) * (1.0 - 0.1 * seed)
            write_wav(folder / "samples" / f"{Path(name).stem}_{take}.wav", wav, RATE)
    write_lines(folder / "losses.jsonl", [loss_line(s, constant) for s in range(1, steps + 1)])
    last = 0.81 if constant else 0.6123
    scores = [score(0, 0.81)] + ([score(steps, last)] if steps else [])
    write_lines(folder / "scores.jsonl", scores)
    loud, near = "As loud as it was.", "Nearer by a quarter."
    verdict = {
        "verdict": "Better than the base: nearer to the recordings, and as loud.",
        "words": [loud, near],
        "better_than_base": True,
        "findings": {
            "loudness": {"passed": True, "words": loud},
            "mel distance": {"passed": True, "words": near},
        },
        "voice": "ada",
        "base": "demo",
        "base_warning": "THE BASE 'demo' IS A SMALL ONE: give --pretrained-d s2D.pth",
        "version": "v2",
        "steps": steps,
        "epochs": 1,
        "seconds": 372.4,
        "options": {"batch_size": 4, "lr_g": 1e-5, "compiled": None},
        "reference": "LJ001-0001.wav",
        "clips": [{"name": name, "text": text} for name, text in CLIPS],
        "clips_are_held_out": True,
        "base_score": scores[0],
        "final_score": scores[-1],
        "best": {"step": steps, "mel_distance": last},
        "drift": {"dec.ups.0": 0.0123, "enc_q.pre": 0.0045, "ref_enc.fc.fc": 0.002},
    }
    (folder / "verdict.json").write_text(json.dumps(verdict | changes), encoding="utf-8")
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "ada")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page_of(run)


def embedded(uri: str, kind: str) -> bytes:
    assert uri.startswith(f"data:{kind};base64,")
    return base64.b64decode(uri.split(",", 1)[1], validate=True)


def decode_png(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(height, width)` and palette `(256, 3)` of an indexed PNG without row filters."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind] = body
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:], np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(256, 3)


def test_page_needs_nothing_but_itself(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, name)
    bare = re.sub(r"data:[a-z/]+;base64,[\w+/=]+", "", html)
    assert "://" not in bare
    assert "url(" not in bare
    assert "@import" not in bare
    assert not re.search(r"""["'(]//""", bare)


def test_policy_forbids_requests_and_allows_the_script(html: str) -> None:
    page = Page(html)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none';")
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_sound_is_what_was_in_the_files(run: Path, html: str) -> None:
    players = Page(html).all("audio")
    assert len(players) == len(CLIPS) * len(TAKES)
    names = [(Path(name).stem, take) for name, _ in CLIPS for take in TAKES]
    for player, (stem, take) in zip(players, names, strict=True):
        data = embedded(player["src"], "audio/flac")
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        expected, _ = soundfile.read(run / "samples" / f"{stem}_{take}.wav", dtype="int16")
        assert rate == RATE
        np.testing.assert_array_equal(samples, expected)
        assert "controls" in player
        assert player["aria-label"]


def test_pictures_are_the_spectrograms_on_one_scale(run: Path, html: str) -> None:
    pictures = Page(html).all("img")
    assert len(pictures) == len(CLIPS) * len(TAKES)
    for index, (name, _) in enumerate(CLIPS):
        mels = []
        for take in TAKES:
            path = run / "samples" / f"{Path(name).stem}_{take}.wav"
            mels.append(log_mel(soundfile.read(path, dtype="float32")[0], DataSection()))
        top = max(mel.max() for mel in mels)
        for picture, mel in zip(pictures[3 * index : 3 * index + 3], mels, strict=True):
            pixels, palette = decode_png(embedded(picture["src"], "image/png"))
            assert pixels.shape == (BANDS, int((0.8 + 0.3 * index) * RATE) // HOP)
            np.testing.assert_array_equal(palette, colour_map())
            shown = pixels[::-1].T / 255.0 * DECIBELS + top - DECIBELS
            # Half a colour of 80 dB / 255.
            np.testing.assert_allclose(shown, np.maximum(mel, top - DECIBELS), atol=0.16)
            assert picture["alt"].startswith("Log-mel spectrogram")


def test_numbers_and_words_are_there(html: str) -> None:
    text = re.sub(r"\s+", " ", Page(html).text)
    for words in (
        "ada",
        "Better than the base: nearer to the recordings, and as loud.",
        "THE BASE 'demo' IS A SMALL ONE: give --pretrained-d s2D.pth",
        "Nearer by a quarter.",
        "First words",
        "20,123",
        "2,345",
        "0.612",
        "6 min 12 s",
        "dec.ups.0",
        "1.23 %",
        "batch_size",
        "neither normalised nor clipped",
    ):
        assert words in text, words
    for name in ("loss_mel", "loss_fm", "loss_gen", "loss_kl", "loss_d", "loss_total", "loss_reg"):
        assert f"<code>{name}</code>" in html
    assert '<section class="verdict good">' in html
    assert "least 15,000" in html
    assert html.count('<svg viewBox="0 0 372 210" role="img" aria-label="') == 12


def test_everything_has_a_heading_or_a_caption(html: str) -> None:
    page = Page(html)
    assert len(page.all("h1")) == 1
    assert html.count("<caption>") == len(page.all("table"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_a_worse_voice_is_said_to_be_worse(tmp_path: Path) -> None:
    words = {"verdict": "Not better.", "better_than_base": False, "base_warning": ""}
    html = page_of(make_run(tmp_path / "run", **words))
    assert '<section class="verdict bad">' in html
    assert "Not better" in Page(html).text
    assert 'class="warning"' not in html


def test_text_is_escaped(tmp_path: Path) -> None:
    nasty = """<script>alert("x")</script> & 'quotes' "><b> $title"""
    name = """a<b>"&'.wav"""
    clips = [{"name": name, "text": nasty}, {"name": "b.wav", "text": nasty}]
    changes = {"voice": nasty, "base": nasty, "base_warning": nasty, "options": {nasty: nasty}}
    more = {"words": [nasty], "verdict": nasty, "reference": nasty, "drift": {nasty: 0.1}}
    folder = make_run(tmp_path / "run", clips=clips, **changes, **more)
    for take in TAKES:
        (folder / f"samples/a_{take}.wav").rename(folder / f"samples/{Path(name).stem}_{take}.wav")
    html = page_of(folder)
    assert "<script>alert" not in html
    page = Page(html)  # and the tags are still balanced
    assert page.text.count(nasty) >= 10
    assert name in page.text
    assert page.all("audio")[0]["aria-label"] == f"Recording, {name}"
    assert len(page.all("script")) == 1


@pytest.mark.parametrize(
    ("steps", "constant"), [(0, False), (1, False), (2, True), (700, False), (30, True)]
)
def test_any_length_of_run(tmp_path: Path, steps: int, constant: bool) -> None:
    html = page_of(make_run(tmp_path / "run", steps=steps, constant=constant))
    Page(html)
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(drawing)
        assert not re.search(r"\b(nan|inf)\b", drawing)


def test_same_run_same_page(run: Path, html: str) -> None:
    assert page_of(run) == html
    assert sorted(path.name for path in run.iterdir() if path.suffix in (".html", ".tmp")) == [
        "report.html"
    ]


@pytest.mark.parametrize(
    "name", ["verdict.json", "losses.jsonl", "scores.jsonl", "samples/a_base.wav"]
)
@pytest.mark.parametrize("damage", ["missing", "garbage", "wrong shape"])
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, run: Path, name: str, damage: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html"))
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "garbage":
        (folder / name).write_bytes(b"\xff\xfe not what it should be")
    elif name.endswith(".wav"):
        write_wav(folder / name, np.zeros(300, np.float32), RATE)  # too short for a spectrogram
    else:
        (folder / name).write_text('{"step": true}\n')
    with pytest.raises(UserError) as caught:
        write_report(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_smoothing_is_a_centred_mean() -> None:
    points = Points(np.arange(5.0), np.array([0.0, 3.0, 6.0, 3.0, 0.0]))
    np.testing.assert_allclose(smooth(points, 3).y, [1.5, 3, 4, 3, 1.5])
    powers = Points(np.arange(3.0), np.array([1.0, 10.0, 100.0]))
    np.testing.assert_allclose(smooth(powers, 3, log=True).y, [10**0.5, 10, 10**1.5])


def test_thinning_out_keeps_peaks_and_ends() -> None:
    y = np.random.default_rng(0).normal(size=10_000)
    y[4321] = 50.0
    thin = decimate(Points(np.arange(10_000.0), y))
    assert len(thin.y) <= 602
    assert thin.y.max() == 50.0
    assert thin.y.min() == y.min()
    assert (thin.x[0], thin.x[-1]) == (0.0, 9999.0)
    assert (np.diff(thin.x) > 0).all()


def test_ticks_and_numbers() -> None:
    assert nice_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert nice_ticks(0.5, 1.5, whole=True) == [1]
    assert nice_ticks(3, 3) == [3]
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]
    assert log_ticks(1.5, 6) == [2, 5]
    assert number(12345.6) == "12,346"
    assert number(9.9996e-6) == "1.000×10⁻⁵"
    assert number(-0.5, 2) == "\u22120.50"
    assert number(float("nan")) == "not a number"


def test_labels_beside_a_chart_do_not_overlap() -> None:
    line = Line("", "a", np.arange(3.0), np.array([100.0, 101.0, 102.0]))
    marks = [Mark(100.0, "one"), Mark(100.1, "two"), Mark(100.2, "three")]
    drawing = draw_chart(Chart("Marks", "", "", [line], marks))
    heights = [float(y) for y in re.findall(r'y="([\d.]+)">(?:one|two|three)<', drawing)]
    assert len(heights) == 3
    assert min(np.abs(np.diff(sorted(heights)))) >= 12


def test_frequencies_are_where_tones_are() -> None:
    time = np.arange(RATE) / RATE
    frequencies = (500, 1000, 2000, 4000, 8000)
    for hz, row in zip(frequencies, frequency_rows(frequencies, DataSection()), strict=True):
        tone = (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)
        loudest = log_mel(tone, DataSection())[10:-10].mean(axis=0).argmax()
        assert abs(loudest + 0.5 - row * BANDS) <= 1


def test_colours_rise_evenly_from_dark_to_bright() -> None:
    linear = (colour_map() / 255.0) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -2e-3).all()
    assert luminance[0] < 0.01
    assert luminance[-1] > 0.8
