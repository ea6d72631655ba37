"""`mlx-vits list`, and runs that are given by their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.cli import app
from mlx_vits.version import __version__
from tests.support.runs import Place
from tests.support.tiny import make_base
from tests.support.tiny_gpt import add_gpt


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("listing"))


@pytest.fixture
def here(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run `me`, and `small` for a base."""
    shutil.copytree(place.whole, tmp_path / "runs" / "me")
    make_base(tmp_path / "home" / "small")
    add_gpt(tmp_path / "home" / "small")
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_bases_voices_and_runs_are_listed(here: Path) -> None:
    (here / "voices" / "half" / "clips").mkdir(parents=True)
    shutil.copytree(here / "runs" / "me" / "prepared", here / "voices" / "ada" / "prepared")
    shutil.copytree(here / "runs" / "me", here / "runs" / "on")
    (here / "runs" / "on" / "verdict.json").unlink()
    (here / "home" / "bert").mkdir()
    done = _run("list")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "base small v2, speaks texts"
    assert lines[1].startswith("voice ada 4 clips, ")
    assert lines[2] == "voice half not prepared to its end"
    verdict = json.loads((here / "runs" / "me" / "verdict.json").read_text())["verdict"]
    page = " ".join(lines[3:])
    assert f"run me from base; {verdict}" in page
    assert "run on from base; not finished: `python -m mlx_vits.train --resume runs/on`" in page


def test_where_there_is_nothing_it_is_said(here: Path) -> None:
    for folder in ("runs", "home"):
        shutil.rmtree(here / folder)
    done = _run("list")
    assert done.exit_code == 1
    assert "mlx-vits download v2" in done.stderr


def test_a_run_is_found_by_its_name(here: Path) -> None:
    assert mlx_vits.load("me").name == "clips"
    done = _run("export", "me", here / "me.pth")
    assert done.exit_code == 0, done.output
    assert (here / "me.pth").is_file()
    done = _run("inspect", "me")
    assert done.exit_code == 0, done.output
    done = _run("finetune", "--resume", "me")
    assert done.exit_code == 0, done.output


def test_a_base_comes_before_a_run_of_its_name_in_python(here: Path) -> None:
    shutil.copytree(here / "runs" / "me", here / "runs" / "small")
    assert mlx_vits.load("small").name == "small"
    assert mlx_vits.load("runs/small").name == "clips"


@pytest.mark.parametrize("name", ["out.onnx", "out.pt", "out.bin", "out.gguf", "voice.zip", "a.b"])
def test_a_form_that_a_voice_is_not_written_in(here: Path, name: str) -> None:
    done = _run("export", "me", here / name)
    assert done.exit_code == 1
    assert f"{name}: a voice is written as .pth, as .safetensors or as a folder" in done.stderr
    assert not (here / name).exists()


def test_a_file_is_no_base(here: Path) -> None:
    (here / "s2G.pth").write_bytes(b"")
    done = _run("prepare", here, "--base", here / "s2G.pth")
    assert done.exit_code == 1
    assert "is a file, and a base is a folder" in done.stderr


def test_the_version(here: Path) -> None:
    assert _run("--version").stdout == f"mlx_vits {__version__}\n"


def test_a_finished_run_that_is_resumed_keeps_its_time(here: Path) -> None:
    path = here / "runs" / "me" / "verdict.json"
    verdict = json.loads(path.read_text())
    path.write_text(json.dumps(verdict | {"seconds": 1234.5}))
    assert _run("finetune", "--resume", "runs/me").exit_code == 0
    assert json.loads(path.read_text())["seconds"] == 1234.5
