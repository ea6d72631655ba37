"""JSON and text files of ours, damaged: each kind writes a case and gives what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlx_vits.checkpoints.run import Place, read_place
from mlx_vits.checkpoints.run_info import RunInfo, RunOptions
from mlx_vits.config import Config, read_json_table
from mlx_vits.finetune.options import suggested_options
from mlx_vits.models.hubert import HubertConfig
from mlx_vits.preprocessing.prepared import DroppedClip, Manifest, SourceClip, read_text_lines
from mlx_vits.report.results import LossRecord, read_results
from mlx_vits.training.log import read_lines
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.fuzzing import Kind

_INFO = RunInfo(
    "me", "/d", "p", "0", "b", "/g", "", "", "0", "en", RunOptions(asdict(VITSTrainingConfig()))
)
_MANIFEST = Manifest(
    "b",
    "0",
    16,
    "v2",
    "en",
    (SourceClip("a.wav", "0", 1.5, "text"),),
    (DroppedClip("b.wav", "why"),),
)
_CLIP_SCORE = {"name": "a.wav", "largest_sample": 1.5, "rms": 1.0, "mel_distance": 1.0}
_SCORE = {"step": 1, **_CLIP_SCORE, "clips": [_CLIP_SCORE]}
_LOSSES = dict.fromkeys(LossRecord.__annotations__, 1.5) | {"step": 1, "epoch": 1}
_VERDICT = {
    "verdict": "Better.",
    "words": ["w"],
    "better_than_base": True,
    "findings": {"drift": {"passed": True, "words": "w"}},
    "voice": "me",
    "base": "b",
    "base_warning": "",
    "version": "v2",
    "steps": 1,
    "epochs": 1,
    "seconds": 1.5,
    "options": asdict(VITSTrainingConfig()),
    "reference": "a.wav",
    "clips": [{"name": "a.wav", "text": "text"}],
    "clips_are_held_out": True,
    "base_score": _SCORE,
    "final_score": _SCORE,
    "best": {"step": 1, "mel_distance": 1.0},
    "drift": {"dec": 0.5},
}
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 0.5, 1e12, 10**12, 10**30, 1e308, float("nan"), float("-inf")),
    *("", "x", "..", "../..", "/etc/passwd", "a\0b", "n" * 5000, "\udcff", "\ud800x", "~nobody"),
    *([], {}, [1], ["a"], {"a": 1}, [[1, 2]], "1", "fp32", "\n"),
)
_RAW = (
    *(
        b"",
        b"[]",
        b"{}",
        b"null",
        b"{",
        b"[1,]",
        b"NaN",
        b"\xff",
        b"1e999",
        b"\0" * 99,
        b'{"a":1,"a":2}',
    ),
    *(b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"1" * 5000),
)
_ENCODINGS = ("utf-16", "utf-32", "utf-16-le")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


def _misstate(text: str, draw: np.random.Generator) -> str:
    """Give a value of a JSON text another, take it away, or add one."""
    value = json.loads(text)
    places = _places(value)[1:]
    if not places:
        return text
    *above, key = places[draw.integers(len(places))]
    parent = value
    for step in above:
        parent = parent[step]
    new, how = _VALUES[draw.integers(len(_VALUES))], draw.integers(5)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent["another"] = new
    else:
        parent[key] = new
    return json.dumps(value)


def _damage(content: bytes, draw: np.random.Generator) -> bytes:
    at, how = int(draw.integers(len(content) + 1)), draw.integers(6)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + bytes([int(draw.integers(256))]) + content[at + 1 :]
    if how == 2:
        return content.decode().encode(_ENCODINGS[draw.integers(len(_ENCODINGS))])
    if how == 3:
        return content * 2
    if how == 4:
        return content[:at] + b"\t\n\0|\r "[draw.integers(6) :] + content[at:]
    return _RAW[draw.integers(len(_RAW))]


def _kind(name: str, valid: str, read: Callable[[Path], Any], beside: dict[str, str]) -> Kind:
    def write(folder: Path, content: bytes) -> None:
        for other, text in beside.items():
            (folder / other).write_text(text)
        (folder / name).write_bytes(content)

    @cache
    def warm_up(folder: Path) -> None:  # what is sound has to be read, and modules imported
        write(folder, valid.encode())
        assert read(folder) is not None

    def make(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
        warm_up(path.parent)
        lines = valid.split("\n")
        is_json = valid.startswith("{")
        if is_json and draw.random() < 0.6:
            lines[0] = _misstate(lines[0], draw)
            content = "\n".join(lines).encode()
        else:
            content = _damage(valid.encode(), draw)
        write(path.parent, content)
        return lambda path: read(path.parent)

    return make


def _read_place(folder: Path) -> Place:
    text = (folder / "place").read_text(encoding="utf-8", errors="replace")
    return read_place({"place": text}, folder / "last.safetensors")


def _read_run(folder: Path) -> VITSTrainingConfig:
    return VITSTrainingConfig.of_run(RunInfo.read(folder).options.training, folder / "run.json")


def _read_encoder(folder: Path) -> HubertConfig:
    path = folder / "config.json"
    return HubertConfig.from_dict(read_json_table(path), source=str(path))


def _read_text(folder: Path) -> Any:
    return read_text_lines(folder / "2-name2text.txt")


_LINES = json.dumps(_LOSSES) + "\n" + json.dumps(_LOSSES | {"step": 2}) + "\n"
_RUN = {
    "verdict.json": json.dumps(_VERDICT),
    "losses.jsonl": _LINES,
    "scores.jsonl": json.dumps(_SCORE) + "\n",
}
_TEXT = "a.wav\tAA1 B\tNone\ttext\nb.wav\tAA1\t[1]\tmore\n"


def _of_run(name: str) -> Kind:
    return _kind(name, _RUN[name], read_results, {k: v for k, v in _RUN.items() if k != name})


JSON_KINDS: dict[str, Kind] = {
    "run.json": _kind("run.json", json.dumps(asdict(_INFO)), _read_run, {}),
    "place": _kind("place", json.dumps(asdict(Place(3))), _read_place, {}),
    "manifest": _kind(
        "mlx_vits.json", json.dumps({"format": 1} | asdict(_MANIFEST)), Manifest.read, {}
    ),
    "finetune.json": _kind(
        "finetune.json", '{"batch_size": 2, "lr_g": 1e-4, "train": "all"}', suggested_options, {}
    ),
    "verdict": _of_run("verdict.json"),
    "losses": _of_run("losses.jsonl"),
    "scores": _of_run("scores.jsonl"),
    "resumed losses": _kind("losses.jsonl", _LINES, lambda f: read_lines(f / "losses.jsonl"), {}),
    "config": _kind(
        "config.json", json.dumps(Config().to_dict()), lambda f: Config.read(f / "config.json"), {}
    ),
    "content encoder": _kind("config.json", json.dumps(asdict(HubertConfig())), _read_encoder, {}),
    "2-name2text": _kind("2-name2text.txt", _TEXT, _read_text, {}),
}
