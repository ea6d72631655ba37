"""A run writes inside its own folder, whatever names and links say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.cli import app
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.finetune.handover import hand_over
from mlx_vits.preprocessing.prepare import prepare_voice
from tests.support.runs import Place, names
from tests.support.tiny import Silent, tiny_config


@pytest.mark.parametrize("voice", ["../victim/clips", "{root}/victim/clips", "..", "", "a\nb"])
def test_a_run_that_names_something_outside_is_refused(
    run: Path, tmp_path: Path, voice: str
) -> None:
    victim = tmp_path / "runs" / "victim" / "clips.safetensors"
    victim.parent.mkdir()
    victim.write_text("precious")
    info = json.loads((run / "run.json").read_text())
    name = voice.format(root=tmp_path / "runs")
    (run / "run.json").write_text(json.dumps(info | {"voice": name}))
    uses: list[Callable[[], Any]] = [
        lambda: finetune.resume(run, Silent()),
        lambda: mlx_vits.load(run),
        lambda: hand_over(run, tmp_path / "out"),
    ]
    for use in uses:
        with pytest.raises(CheckpointError, match=r"run\.json: voice: .* is not a plain name"):
            use()
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]
    assert victim.read_text() == "precious"


def test_a_run_whose_data_lie_outside_by_a_relative_path_is_refused(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    shutil.move(run / "prepared", run.parent / "prepared")
    (run / "run.json").write_text(json.dumps(info | {"prepared": "../prepared"}))
    with pytest.raises(UserError, match="leads out of"):
        finetune.resume(run, Silent())


@pytest.mark.parametrize("name", ["samples", "checkpoints", "tensorboard", "prepared"])
def test_a_link_out_of_a_run_is_not_written_through(run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    if (run / name).exists():
        shutil.move(run / name, victim)
    else:
        victim.mkdir()
    (run / name).symlink_to(victim)
    before = {path: path.stat().st_mtime_ns for path in victim.rglob("*")}
    with pytest.raises(UserError, match=f"{name}: leads out of"):
        finetune.resume(run, Silent())
    assert {path: path.stat().st_mtime_ns for path in victim.rglob("*")} == before


def test_a_linked_folder_of_spectrograms_is_not_written_through(
    place: Place, run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "prepared" / "spectrograms")
    (tmp_path / "victim").mkdir()
    (run / "prepared" / "spectrograms").symlink_to(tmp_path / "victim")
    finetune.start(place.options(tmp_path / "new", data=run / "prepared"), Silent())
    assert not any((tmp_path / "victim").iterdir())


def test_a_link_in_a_half_prepared_folder_is_not_written_through(
    place: Place, tmp_path: Path
) -> None:
    victim = tmp_path / "music"
    victim.mkdir()
    (victim / "song.wav").write_text("precious")
    partial = tmp_path / "voice" / ".prepared.partial"
    partial.mkdir(parents=True)
    (partial / "5-wav32k").symlink_to(victim)
    base = choose_base(str(place.root / "base"))
    with pytest.raises(UserError, match="leads out of"):
        prepare_voice(place.clips, tmp_path / "voice" / "prepared", base, tiny_config())
    assert [path.name for path in victim.iterdir()] == ["song.wav"]


def test_a_list_of_clips_that_names_files_elsewhere_is_refused(place: Place, run: Path) -> None:
    lines = run / "prepared" / "2-name2text.txt"
    lines.write_text(lines.read_text().replace("clip_0.wav", "../../../clip_0.wav", 1))
    with pytest.raises(UserError, match=r"2-name2text\.txt: .* is not a plain name"):
        finetune.start(place.options(run.parent / "new", data=run / "prepared"), Silent())
    assert not (run.parent / "new").exists()


@pytest.mark.parametrize("command", ["finetune", "prepare"])
@pytest.mark.parametrize("voice", ["../x", "/x", "..", "x/"])
def test_a_voice_cannot_be_called_by_a_path(
    place: Place, tmp_path: Path, monkeypatch: Any, command: str, voice: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    source = ["--data-dir"] if command == "finetune" else []
    base = ["--base", str(place.root / "base")]
    done = CliRunner().invoke(app, [command, *source, str(place.clips), *base, "--voice", voice])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: --voice: ")
    assert names(tmp_path) == {"work"}
