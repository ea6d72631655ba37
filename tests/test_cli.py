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
from mlx_vits.checkpoints.convert import mlx_to_torch, torch_to_mlx
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.cli import app
from mlx_vits.errors import CheckpointError
from tests.support.goldens import ROOT, golden
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
    done = _run("prepare", make_voice(tmp_path / "clips"), tmp_path / "out", "--base", base)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "2-name2text.txt").is_file()
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
        (("prepare", tmp_path / "no", tmp_path / "x", "--base", base), "no such folder"),
    ):
        done = _run(*arguments)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_golden_pth_goes_to_mlx_and_back_bit_for_bit(tmp_path: Path) -> None:
    source = golden("sovits_v2", "golden_v2_e8_s64.pth")
    for form in ("voice.safetensors", "voice"):
        assert torch_to_mlx(source, tmp_path / form) == "v2 generator, 601 tensors"
        back = tmp_path / f"{form}.pth"
        assert mlx_to_torch(tmp_path / form, back) == "v2 voice"
        theirs, ours = read_torch_archive(source), read_torch_archive(back)
        assert list(ours["weight"]) == list(theirs["weight"])
        for name, array in theirs["weight"].items():
            assert ours["weight"][name].dtype == array.dtype
            assert np.array_equal(ours["weight"][name], array), name


def test_a_discriminator_goes_both_ways(base: Path, tmp_path: Path) -> None:
    source = base / "discriminator.safetensors"
    assert mlx_to_torch(source, tmp_path / "d.pth") == "discriminator, 111 tensors"
    assert torch_to_mlx(tmp_path / "d.pth", tmp_path / "d.safetensors").startswith("discriminator")
    before, after = read_tensors(source).tensors, read_tensors(tmp_path / "d.safetensors").tensors
    for name, array in before.items():
        assert np.array_equal(np.array(after[name]), np.array(array).astype(np.float16)), name


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        torch_to_mlx(tmp_path / "text.pth", tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"has to end in \.pth"):
        mlx_to_torch(tmp_path / "a.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_converter_never_writes_over_anything(base: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_text("precious")
    source = golden("sovits_v2", "golden_v2_e8_s64.pth")
    with pytest.raises(CheckpointError, match="is there already"):
        torch_to_mlx(source, taken)
    with pytest.raises(CheckpointError, match="is there already"):
        mlx_to_torch(base, source)
    assert taken.read_text() == "precious"
    mlx_to_torch(base / "discriminator.safetensors", tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match=r"needs a name in \.safetensors"):
        torch_to_mlx(tmp_path / "d.pth", tmp_path / "folder")


@pytest.mark.parametrize("script", ["convert_torch_to_mlx", "convert_mlx_to_torch"])
def test_the_scripts_run(script: str, base: Path, tmp_path: Path) -> None:
    source, output = golden("sovits_v2", "golden_v2_e8_s64.pth"), tmp_path / "out.safetensors"
    if script == "convert_mlx_to_torch":
        source, output = base, tmp_path / "out.pth"
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert mlx_vits.load(output).version == "v2"


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
