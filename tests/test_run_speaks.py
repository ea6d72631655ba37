"""A fine-tuned run speaks: what it continues, and the first sentence that it says of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import mlx_vits
from mlx_vits import finetune
from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.checkpoints.base import Base
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.errors import UserError
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.finetune.first_words import keep_references, sentence_language
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.synthesis.companions import StoredReference
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.tiny import (
    RATE,
    SEGMENT,
    TEXTS,
    Silent,
    add_speaker_vectors,
    hum,
    make_base,
    make_voice,
    tiny_config,
)
from tests.support.tiny_gpt import add_gpt


class Screen(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    warn = say


class Prepared(NamedTuple):
    """A base, and clips prepared for it."""

    base: Base
    folder: Path


class Run(NamedTuple):
    """A finished run, the clips it was prepared from, and what was said on screen."""

    folder: Path
    prepared: Path
    said: list[str]


def prepare(root: Path, *, version: str = "v2", shortest: float = 3.0) -> Prepared:
    """Prepare four clips, the second of which alone ends in a pause."""
    base = make_base(root / "base", version=version)
    clips = make_voice(root / "clips", 4, shortest)
    pause = np.zeros(RATE // 4, np.float32)
    write_wav(clips / "clip_1.wav", np.concatenate([hum(shortest, 140), pause]), RATE)
    config = base.read_generator().config
    folder = prepare_voice(clips, root / "prepared", base, config)
    if config.model.is_pro:
        add_speaker_vectors(folder)
    return Prepared(base, folder)


def start(root: Path, *, speaks: bool) -> Run:
    """Fine-tune for a step, from a base with a T2S if it `speaks`."""
    base, prepared = prepare(root)
    if speaks:
        add_gpt(base.generator)
    screen, folder = Screen(), root / "runs" / "me"
    training = VITSTrainingConfig(steps=1, batch_size=1, segment_size=SEGMENT, compiled=False)
    finetune.start(FinetuneOptions("me", prepared, base, folder, training), screen)
    return Run(folder, prepared, screen.said)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(tmp_path_factory.mktemp("speaks"), speaks=True)


def new_sentence(run: Run) -> dict | None:
    return json.loads((run.folder / "verdict.json").read_text())["new_sentence"]


def test_a_run_keeps_a_clip_to_continue_and_what_it_says(run: Run) -> None:
    kept = json.loads((run.folder / "reference.json").read_text(encoding="utf-8"))
    assert kept == {"audio": "prompt.wav", "text": TEXTS[1], "language": "en"}
    clip = read_audio(run.prepared / "5-wav32k" / "clip_1.wav")
    assert np.array_equal(read_audio(run.folder / "prompt.wav").wav, clip.wav)


def test_it_says_a_sentence_that_the_report_plays(run: Run) -> None:
    said = new_sentence(run)
    assert said is not None
    assert said["language"] == "en"
    assert said["text"] not in TEXTS
    sound = read_audio(run.folder / "samples" / "new_sentence.wav")
    assert len(sound.wav) / sound.rate == pytest.approx(said["seconds"], abs=0.01)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "A sentence it was never trained on" in page
    assert said["text"] in page
    assert page.count("<audio") == 4  # three takes of the clip held out, and the sentence
    assert run.said[-1].endswith(f'mlx-vits speak {run.folder} "…" -o hello.wav')


def test_the_loaded_run_speaks_from_its_own_reference(run: Run) -> None:
    voice = mlx_vits.load(run.folder)
    spoken = voice.speak("Hello there.")
    own = voice.speak("Hello there.", reference=run.folder / "prompt.wav", reference_text=TEXTS[1])
    assert spoken.wav.any()
    assert np.array_equal(spoken.wav, own.wav)


def test_the_language_is_that_of_the_reference(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "korean"
    shutil.copytree(run.folder, folder)
    kept = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    (folder / "reference.json").write_text(json.dumps(kept | {"language": "ko"}))
    with pytest.raises(UserError, match="has heard en alone, and the language is 'ko'"):
        mlx_vits.load(folder).speak("안녕하세요.")


def test_a_run_of_an_earlier_version_and_without_t2s(tmp_path: Path) -> None:
    run = start(tmp_path, speaks=False)
    (line,) = [said for said in run.said if "No new sentence" in said]
    assert "mlx-vits download v2" in line
    assert new_sentence(run) is None
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "never trained on</h2>" not in page
    assert "mlx-vits speak" not in run.said[-1]

    for name in ("reference.json", "prompt.wav"):
        (run.folder / name).unlink()
    add_gpt(tmp_path / "base")
    assert mlx_vits.load(run.folder).speaker.companions.reference.text == TEXTS[1]
    finetune.resume(run.folder, Silent())
    assert (run.folder / "prompt.wav").is_file()
    assert new_sentence(run) is not None


def test_a_pro_run_keeps_the_vector_of_what_it_continues(tmp_path: Path) -> None:
    _, prepared = prepare(tmp_path, version="v2Pro")
    keep_references(tmp_path, prepared, tiny_config("v2Pro"), "en", Silent())
    paths = tmp_path / "prompt_sv.pt", prepared / "7-sv_cn" / "clip_1.wav.pt"
    kept, made = (read_torch_archive(path) for path in paths)
    assert np.array_equal(kept, made)


def test_clips_that_are_all_too_short_give_their_timbre_alone(tmp_path: Path) -> None:
    _, prepared = prepare(tmp_path, shortest=1.2)
    screen = Screen()
    keep_references(tmp_path, prepared, tiny_config(), "en", screen)
    (line,) = screen.said
    assert "No clip lasts 3 to 10 s" in line
    kept = json.loads((tmp_path / "reference.json").read_text(encoding="utf-8"))
    assert kept == {"audio": "reference.wav", "text": "", "language": "en"}
    keep_references(tmp_path, prepared, tiny_config(), "en", screen)
    assert len(screen.said) == 1


@pytest.mark.parametrize(
    ("language", "text", "code"),
    [
        ("en", "", "en"),
        ("all_zh", "", "zh"),
        ("auto", "오늘은 비가", "ko"),
        ("auto_yue", "今日", "yue"),
    ],
)
def test_the_new_sentence_is_in_the_voices_language(language: str, text: str, code: str) -> None:
    assert sentence_language(StoredReference("a.wav", text, language)) == code
