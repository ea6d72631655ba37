"""`python -m mlx_vits.train` as a newcomer meets it: a whole run, mistakes, Ctrl-C, resuming."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import mlx_vits
from mlx_vits.audio.files import read_audio
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.synthesis.scoring import mel_distance
from tests.support.goldens import ROOT
from tests.support.tiny import SEGMENT, TEXTS, make_base, make_voice

DEFAULTS = {
    "--data-dir": "",
    "--base": "demo for demo, else v2, else demo",
    "--pretrained": "",
    "--pretrained-d": "",
    "--content-encoder": "",
    "--output": "runs/NAME",
    "--epochs": "8",
    "--steps": "",
    "--batch-size": "4",
    "--accumulate": "1",
    "--lr-g": "1e-05",
    "--lr-d": "1e-05",
    "--text-low-lr-rate": "0.4",
    "--pretrained-reg": "0.001",
    "--segment-size": "20480",
    "--log-every": "10",
    "--save-every": "100",
    "--seed": "1234",
    "--resume": "",
    "--train": "all",
    "--weight-norm": "upstream",
    "--precision": "auto",
    "--checkpoint-activations": "auto",
}
QUICK = ["--batch-size", "2", "--segment-size", str(SEGMENT), "--log-every", "1"]


class Place:
    """A base, a voice, and the command run on them."""

    def __init__(self, root: Path):
        self.root = root
        make_base(root / "base")
        self.voice = make_voice(root / "clips")

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "mlx_vits.train", *options]

    def environment(self) -> dict[str, str]:
        home = {"MLX_VITS_HOME": str(self.root / "home"), "PYTHONPATH": str(ROOT)}
        return os.environ | home | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}

    def run(self, *options: str, limit: Callable[[], None] | None = None) -> Any:
        return subprocess.run(
            self.command(*options),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.root,
            env=self.environment(),
            preexec_fn=limit,
        )

    def finetune(self, output: str, *options: str, **more: Any) -> Any:
        folders = ["--data-dir", str(self.voice), "--base", str(self.root / "base")]
        return self.run(*folders, "--output", output, *QUICK, *options, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("command"))


@pytest.fixture(scope="module")
def finished(place: Place) -> tuple[Path, Any]:
    done = place.finetune("runs/whole", "--steps", "4", "--save-every", "2")
    assert done.returncode == 0, done.stderr
    return place.root / "runs" / "whole", done


def test_a_run_leaves_everything_that_was_promised(finished: Any) -> None:
    folder, done = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "prepared",
        "checkpoints",
        "clips_e1_s4.pth",
        "clips.safetensors",
        "reference.json",
        "reference.wav",
        "samples",
        "losses.jsonl",
        "scores.jsonl",
        "verdict.json",
        "report.html",
        "run.json",
    }
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"clip_4_{kind}.wav" for kind in ("recording", "base", "finetuned")
    }
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {
        "last.safetensors",
        "best.safetensors",
    }
    assert "SMALL ONE, FOR TRYING" in done.stdout
    assert "GPT-SoVITS itself cannot" in done.stdout
    assert "SMALL ONE, FOR TRYING" in (folder / "report.html").read_text(encoding="utf-8")


def test_losses_are_logged_for_every_step(finished: Any) -> None:
    folder, done = finished
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    wanted = "loss_d loss_gen loss_fm loss_mel loss_kl loss_commit loss_reg loss_total grad_norm_g"
    wanted += " grad_norm_d lr_g lr_d step epoch"
    assert set(wanted.split()) <= set(records[0])
    assert f"mel {records[3]['loss_mel']:.3f}" in done.stdout
    assert "step 4/4" in done.stdout


def test_the_verdict_compares_with_the_base(finished: Any) -> None:
    folder, done = finished
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["steps"] == 4
    assert verdict["clips"] == [{"name": "clip_4.wav", "text": TEXTS[4]}]
    assert verdict["reference"] == "clip_0.wav"
    assert verdict["base_is_reduced"]
    for score in ("base_score", "final_score"):
        assert verdict[score]["largest_sample"] > 0
        assert verdict[score]["mel_distance"] > 0
    assert all(words in done.stdout for words in (*verdict["words"], verdict["verdict"]))
    assert {"dec.ups.0", "enc_p.proj"} <= set(verdict["drift"])
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [score["step"] for score in scores] == [0, 2, 4]
    assert scores[-1] == verdict["final_score"]


def test_the_verdicts_numbers_are_those_of_convert(finished: Any, place: Place) -> None:
    """Amplitude and mel distance are measured on what `convert` gives, raw."""
    folder, _ = finished
    verdict = json.loads((folder / "verdict.json").read_text())
    voice = mlx_vits.load(folder)
    assert voice.reference == folder / "reference.wav"
    first = folder / "prepared" / "5-wav32k" / "clip_0.wav"
    assert voice.reference.read_bytes() == first.read_bytes()
    clip = read_audio(place.voice / "clip_4.wav")
    spoken = voice.convert(clip.wav, clip.rate, TEXTS[4])
    score = verdict["final_score"]
    assert float(np.abs(spoken).max()) * 32767 == score["largest_sample"]
    recording = read_audio(folder / "prepared" / "held_out" / "5-wav32k" / "clip_4.wav")
    distance = mel_distance(spoken, recording.wav, voice.config)
    assert distance == score["mel_distance"]


def test_the_voice_has_upstreams_form_and_all_tensors(finished: Any) -> None:
    folder, _ = finished
    content = read_torch_archive(folder / "clips_e1_s4.pth")
    assert content["info"] == "1epoch_4iteration"
    assert content["config"]["reduced_dims"]["ssl_dim"] == 16
    assert not any("enc_q" in name for name in content["weight"])
    voice = load_file(folder / "clips.safetensors")
    assert any("enc_q" in name for name in voice)
    for name, array in content["weight"].items():
        assert np.array_equal(voice[name].astype(np.float16), array), name


def test_a_second_run_keeps_the_first(place: Place) -> None:
    done = place.finetune("runs/again", "--steps", "1")
    assert done.returncode == 0, done.stderr
    again = place.finetune("runs/again", "--steps", "1")
    assert again.returncode == 0, again.stderr
    assert "The earlier run is kept in" in again.stdout
    kept = [p for p in (place.root / "runs").iterdir() if p.name.startswith("again-")]
    assert len(kept) == 1
    assert (kept[0] / "verdict.json").is_file()


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(finished: Any, place: Place) -> None:
    """Ctrl-C in the middle of the epoch, as a shell sends it, and then --resume."""
    folder, _ = finished
    options = ["--data-dir", str(place.voice), "--base", str(place.root / "base"), *QUICK]
    options += ["--steps", "4", "--save-every", "2", "--output", "runs/cut"]
    process = subprocess.Popen(
        place.command(*options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place.root,
        env=place.environment(),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/4"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    cut = place.root / "runs" / "cut"
    stopped = len((cut / "losses.jsonl").read_text().splitlines())
    assert 1 <= stopped < 4
    assert mlx_vits.load(cut).info == f"1epoch_{stopped}iteration"
    done = place.run("--resume", "runs/cut")
    assert done.returncode == 0, done.stderr
    assert f"Resuming at step {stopped}" in done.stdout
    for name in ("losses.jsonl", "scores.jsonl"):
        assert (cut / name).read_text() == (folder / name).read_text(), name
    for name in ("checkpoints/last.safetensors", "clips.safetensors"):
        ours, theirs = load_file(cut / name), load_file(folder / name)
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs), name


def test_a_run_can_be_made_longer(place: Place, finished: Any) -> None:
    done = place.finetune("runs/longer", "--steps", "2")
    assert done.returncode == 0, done.stderr
    done = place.run("--resume", "runs/longer", "--steps", "4", "--save-every", "2")
    assert done.returncode == 0, done.stderr
    ours = (place.root / "runs" / "longer" / "losses.jsonl").read_text()
    assert ours == (finished[0] / "losses.jsonl").read_text()


def _mistakes(place: Place) -> list[tuple[list[str], str]]:
    root = place.root
    base, clips = str(root / "base"), str(place.voice)
    broken = root / "broken.pth"
    broken.write_bytes(b"PK\x03\x04 but no more")
    exported = root / "exported.pth"
    mlx_vits.load(root / "base").save(exported)
    (root / "occupied").mkdir(exist_ok=True)
    (root / "occupied" / "thesis.txt").write_text("do not touch")
    make_base(root / "wider", ssl_dim=24)
    prepared = str(root / "runs" / "whole" / "prepared")
    wider = str(root / "wider" / "content_encoder")
    good = ["--data-dir", clips, "--base", base, "--output", "runs/x"]
    return [
        ([], "give --voice NAME or --data-dir FOLDER"),
        (["--voice", "nobody"], "nobody: there is no such voice"),
        (["--data-dir", "nowhere"], "nowhere: there is no such folder"),
        (["--data-dir", clips, "--base", "nowhere"], "nowhere: there is no such base"),
        ([*good, "--pretrained", "nowhere.pth"], "nowhere.pth: there is no such file"),
        ([*good, "--pretrained", str(broken)], "broken.pth"),
        ([*good, "--pretrained", str(exported)], "without a posterior encoder"),
        ([*good, "--train", "half"], "--train half: is not one of all, decoder"),
        ([*good, "--precision", "fp8"], "--precision fp8: is not one of auto, fp32, bf16"),
        ([*good, "--weight-norm", "none"], "--weight-norm none: is not one of upstream"),
        ([*good, "--segment-size", "20000"], "has to be a multiple of 640; 19840 is the nearest"),
        ([*good, "--language", "xx"], "xx"),
        (["--data-dir", clips, "--base", base, "--output", "occupied"], "is not empty"),
        (["--data-dir", prepared, "--base", str(root / "wider")], "prepare the voice again"),
        ([*good, "--pretrained-d", str(broken)], "broken.pth"),
        ([*good, "--content-encoder", wider], "gives features 24"),
        ([*good, "--segment-size", "81920"], "is shorter than a segment of 81920"),
        (["--data-dir", clips, "--base", base, "--output", str(broken)], "is a file"),
        (
            ["--data-dir", prepared, "--base", base, "--output", "runs/whole"],
            "lies within --output",
        ),
        (["--resume", "nowhere"], "is not the folder of a run"),
        (["--resume", "runs/whole", "--lr-g", "1"], "--lr-g: cannot be changed"),
        (
            ["--resume", "runs/whole", "--pretrained-reg", "1"],
            "--pretrained-reg: cannot be changed",
        ),
        (["--resume", "runs/whole", "--min-length", "99"], "--min-length: cannot be changed"),
        ([*good, "--pretrained-reg", "1e9"], "--pretrained-reg is 1000000000.0, not from 0 to"),
    ]


def test_mistakes_get_one_sentence_and_leave_nothing(place: Place, finished: Any) -> None:
    """In this process, for speed; a subprocess would only add the interpreter's start."""
    from typer.testing import CliRunner

    from mlx_vits.train import app

    runner = CliRunner()
    before = Path.cwd()
    os.chdir(place.root)
    try:
        for options, words in _mistakes(place):
            runs = sorted((place.root / "runs").rglob("*"))
            done = runner.invoke(app, options)
            assert done.exit_code == 1, (options, done.output)
            error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert len(error) == 1, (options, done.output)
            assert words in error[0], error[0]
            assert sorted((place.root / "runs").rglob("*")) == runs, options
    finally:
        os.chdir(before)
    assert (place.root / "occupied" / "thesis.txt").read_text() == "do not touch"


@pytest.mark.parametrize("limit_bytes", [100_000, 700_000])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    place: Place, limit_bytes: int
) -> None:
    """Longer files cannot be written, as when the last bytes of a disk go: in the first case while
    the clips are prepared, in the second at a checkpoint."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    name = f"full{limit_bytes}"
    done = place.finetune(f"runs/{name}", "--steps", "2", limit=limit)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "cannot be written (File too large); " in done.stderr
    left = [path.name for path in (place.root / "runs").rglob("*") if name in str(path)]
    # What was prepared is kept to go on from, under one hidden name; nothing is half written.
    hidden = {part for part in left if part.startswith(".")}
    assert hidden <= {f".{name}.prepared.partial"}
    assert not any(part.endswith(".tmp") for part in left)
    assert ("prepared" in left) == (limit_bytes > 100_000)


def test_help_gives_every_option_its_default(place: Place) -> None:
    text = " ".join(place.run("--help").stdout.split())
    for option, default in DEFAULTS.items():
        mention = re.search(rf"(?<![\w-]){option} <(.*?)(?=[│|] --|[╰+])", text)
        assert mention, option
        assert not default or f"[default: ({default})]" in mention[0], (option, mention[0])
    assert "--bias-correction --no-bias-correction" in text
    assert "[default: (on)]" in text


def test_nothing_is_written_under_the_demo(place: Place) -> None:
    demo = ROOT / "weights" / "demo"
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    started = time.time_ns()
    done = place.run(
        "--data-dir",
        str(demo / "voice"),
        "--base",
        str(place.root / "base"),
        *QUICK,
        "--steps",
        "1",
        "--output",
        "runs/demo",
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    assert all(stamp < started for stamp in before.values())
