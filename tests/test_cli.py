"""`mlx-vits` and the converter scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.audio.files import write_wav
from mlx_vits.cli import app
from tests.support.goldens import ROOT
from tests.support.tiny import RATE, TEXTS, hum, make_base, make_voice

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "base"
    make_base(folder)
    return folder


def _run(*arguments: Any) -> Any:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def test_prepare_convert_and_export(base: Path, tmp_path: Path) -> None:
    clips, home = make_voice(tmp_path / "clips"), tmp_path / "out"
    done = _run("prepare", clips, "--output", home, "--base", base)
    assert done.exit_code == 0, done.output
    assert (home / "prepared" / "2-name2text.txt").is_file()
    write_wav(tmp_path / "said.wav", hum(1.5), RATE)
    spoken = tmp_path / "spoken.wav"
    done = _run("convert", base, tmp_path / "said.wav", TEXTS[0], spoken)
    assert done.exit_code == 0, done.output
    wav = mlx_vits.load(base).convert(
        soundfile.read(tmp_path / "said.wav", dtype="float32")[0], RATE, TEXTS[0]
    )
    assert np.abs(soundfile.read(spoken)[0] - wav).max() < 1 / 16384
    done = _run("export", base, tmp_path / "voice.pth")
    assert done.exit_code == 0, done.output
    assert "GPT-SoVITS cannot" in done.output
    again = _run("export", base, tmp_path / "voice.pth")
    assert again.exit_code == 1
    assert "is there already" in again.stderr


def test_mistakes_are_one_sentence(base: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("convert", base, tmp_path / "no.wav", "yes", tmp_path / "x.wav"), "no such recording"),
        (("export", "nobody", tmp_path / "x.pth"), "there is no such voice"),
        (("prepare", tmp_path / "no", "--base", base), "no such recording"),
    ):
        done = _run(*arguments)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_importing_asks_nothing_of_the_network_and_loads_no_torch() -> None:
    script = (
        "import sys, socket\n"
        "def refuse(*args): raise AssertionError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "import mlx_vits, mlx_vits.train, mlx_vits.cli\n"
        "assert not {'torch', 'huggingface_hub', 'tensorboardX'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
