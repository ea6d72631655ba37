"""The recipe of the demo's base, at a tiny scale: from archives of speech to a base."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import soundfile

from mlx_vits.checkpoints.base import find_base
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.spectrograms import SPECTROGRAM_FOLDER
from tests.support.goldens import ROOT
from tests.support.tiny import CONFIG, RATE, SEGMENT, hum, make_base

RECIPE = ROOT / "scripts" / "demo_base"
WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
)


def _speech(folder: Path) -> Path:
    """24 texts by two readers each, one of whom stays unseen, and some in an archive."""
    for voice in ("kathleen", "kokoro"):
        (folder / voice).mkdir(parents=True)
    rows: dict[str, list[str]] = {"kathleen": [], "kokoro": []}
    for index in range(24):
        text = f"The number is {WORDS[index % 12]} and {WORDS[index // 2]}."
        _write_clip(folder / "kathleen" / f"k{index}.ogg", index)
        rows["kathleen"].append(f"k{index}.ogg\t{text}\n")
    for index, (speaker, text) in enumerate(
        [("bm_lewis", "The number is zero and zero."), ("af_bella", "Only she says this.")]
    ):
        _write_clip(folder / "kokoro" / f"{index}.ogg", index)
        rows["kokoro"].append(f"{index}.ogg\t{speaker}\t{text}\n")
    for voice, lines in rows.items():
        (folder / voice / "transcripts.tsv").write_text("".join(lines))
    (folder / "corpus").mkdir()
    sound = folder / "one.opus"
    soundfile.write(sound, hum(1.5, rate=24000), 24000, format="OGG", subtype="OPUS")
    with tarfile.open(folder / "corpus" / "audio_0.tar", "w") as tar:
        tar.add(sound, "00007.opus")
    header = "id\tvoice\tspeed\tseconds\taudio\ttext_id\ttext\n"
    (folder / "corpus" / "rows.tsv").write_text(
        f"{header}00007\ta+b:0.4\t1\t1.5\t0\tT1\tA sentence of the corpus.\n"
        "00008\ta\t1\t1.5\t-\tT2\tIts sound is not there.\n"
    )
    return folder


def _write_clip(path: Path, index: int) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, hum(1.2 + 0.02 * index, 120 + 5 * index), RATE, format="OGG")
    path.write_bytes(buffer.getvalue())


class Place:
    """Speech, the recipe with a tiny configuration, and a tiny base in the demo's place."""

    def __init__(self, root: Path):
        self.root, self.work, self.speech = root, root / "work", _speech(root / "speech")
        make_base(root / "home" / "demo" / "base")
        (root / "home" / "demo" / "base" / "reference.json").write_text("{}")
        train = {"segment_size": SEGMENT, "batch_size": 4, "epochs": 1000}
        (root / "config.json").write_text(json.dumps(CONFIG | {"train": train}))
        (root / "make.py").write_bytes((RECIPE / "make.py").read_bytes())

    def make(self, stage: str, *options: str) -> Any:
        home = {"MLX_VITS_HOME": str(self.root / "home"), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, str(self.root / "make.py"), stage, str(self.work), *options],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | home,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    made = Place(tmp_path_factory.mktemp("demo_base"))
    for stage, *options in (
        ("clips", "--speech", str(made.speech)),
        ("prepare", "--jobs", "2"),
        ("train", "--minutes", "1", "--steps", "2", "--log-every", "1"),
    ):
        done = made.make(stage, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_texts_that_are_measured_on_are_learnt_from_nobody(place: Place) -> None:
    names = {line.name: line.text for line in layout.read_text_lines(_texts(place))}
    held_out = set((place.work / "clips" / "held_out.txt").read_text().split())
    assert "corpus_00007.opus" in names
    assert "corpus_00008.opus" not in names
    assert "kokoro_0.ogg" not in names, "by the unseen speaker"
    assert "kathleen_k0.ogg" not in names, "what the unseen speaker says"
    assert held_out
    assert held_out.isdisjoint(names)


def test_all_clips_are_prepared_by_both_processes_and_nothing_is_left_of_them(place: Place) -> None:
    folder = place.work / "prepared"
    names = {line.name for line in layout.read_text_lines(_texts(place))}
    assert {p.name for p in (folder / layout.WAV_FOLDER).iterdir()} == names
    assert {p.stem for p in (folder / SPECTROGRAM_FOLDER).iterdir()} == names
    assert sorted(p.name for p in place.work.iterdir()) == [
        "clips",
        "clips.list",
        "prepared",
        "run",
    ]


def test_training_stops_in_time_and_goes_on(place: Place) -> None:
    steps = place.work / "run" / "losses.jsonl"
    stopped = place.make("train", "--minutes", "0.3", "--steps", "100000")
    assert stopped.returncode == 0, stopped.stderr
    count = len(steps.read_text().splitlines())
    assert count > 2
    done = place.make("train", "--minutes", "1", "--steps", str(count + 1))
    assert done.returncode == 0, done.stderr
    assert len(steps.read_text().splitlines()) == count + 1


def test_the_run_becomes_a_base(place: Place) -> None:
    done = place.make("assemble", str(place.root / "new"))
    assert done.returncode == 0, done.stderr
    base = find_base(str(place.root / "new"))
    assert base.discriminator is not None
    assert base.read_generator().config.reduced_dims.ssl_dim == CONFIG["reduced_dims"]["ssl_dim"]
    assert (place.root / "new" / "reference.json").is_file()


def test_missing_speech_is_one_sentence(place: Place) -> None:
    done = place.make("clips", "--speech", str(place.root))
    assert done.returncode == 1
    assert "kathleen/transcripts.tsv: cannot be read; give --speech" in done.stderr


def test_its_configuration_is_that_of_a_model_with_the_demos_codes() -> None:
    demo = find_base(str(ROOT / "weights" / "demo" / "base")).read_generator().config
    stated = json.loads((RECIPE / "config.json").read_text())
    assert stated["reduced_dims"]["ssl_dim"] == demo.reduced_dims.ssl_dim
    assert stated["reduced_dims"]["codebook_size"] == demo.reduced_dims.codebook_size


def _texts(place: Place) -> Path:
    return place.work / "prepared" / layout.TEXT_FILE
