"""A run writes inside its own folder, alone, and goes on after whatever ended it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from mlx_vits.report import terminal as screen
from mlx_vits.system.locks import LOCK_FILE
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice, tiny_config

WEIGHTS = ("checkpoints/last.safetensors", "clips.safetensors", "losses.jsonl", "scores.jsonl")
STEPS = 3


class Stopped(Exception):
    """Stands for what ends a process at once."""


class Calling(Silent):
    """A screen that does something after every step."""

    def __init__(self, act: Callable[[], None]):
        self._act = act

    def step(self, record: Any, total: int) -> None:
        self._act()


class Place:
    """A base, a voice's clips, and the run that nothing disturbed."""

    def __init__(self, root: Path):
        self.root = root
        make_base(root / "base")
        self.clips = make_voice(root / "clips", clips=4)
        self.whole = root / "whole"
        finetune.start(self.options(self.whole), Silent())

    def options(self, output: Path, **more: Any) -> finetune.FinetuneOptions:
        options = finetune.FinetuneOptions(
            voice="clips",
            data=self.clips,
            base=choose_base(str(self.root / "base")),
            output=output,
            training=VITSTrainingConfig(steps=STEPS, batch_size=1, segment_size=SEGMENT),
            save_every=2,
        )
        return replace(options, **more)

    def command(self, output: Path) -> list[str]:
        paths = {"--data-dir": self.clips, "--base": self.root / "base", "--output": output}
        numbers = {"--steps": STEPS, "--batch-size": 1, "--segment-size": SEGMENT}
        given = paths | numbers | {"--save-every": 2}
        return ["finetune", *(str(part) for option in given.items() for part in option)]

    def check_equals_whole(self, run: Path) -> None:
        """The same files with the same bits, and nothing besides them."""
        assert _names(run) == _names(self.whole)
        for name in WEIGHTS:
            assert (run / name).read_bytes() == (self.whole / name).read_bytes(), name


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("safety"))


@pytest.fixture
def run(place: Place, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(place.whole, tmp_path / "runs" / "me"))


@pytest.fixture
def cut(place: Place, tmp_path: Path) -> Path:
    """A run that ended after its first step, with the checkpoint of its beginning."""

    def stop() -> None:
        raise Stopped

    output = tmp_path / "runs" / "cut"
    with pytest.raises(Stopped):
        finetune.start(place.options(output), Calling(stop))
    return output


# Names and links that lead out.


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
    assert _names(tmp_path) == {"work"}


# One writer.


def test_a_second_run_into_a_folder_is_refused_while_the_first_one_lives(
    place: Place, tmp_path: Path
) -> None:
    output, said = tmp_path / "me", []

    def intrude() -> None:
        for enter in (
            lambda: finetune.resume(output, Silent()),
            lambda: finetune.start(place.options(output), Silent()),
        ):
            with pytest.raises(UserError) as caught:
                enter()
            said.append(str(caught.value))

    finetune.start(place.options(output), Calling(intrude))
    who = f"process {os.getpid()} on {socket.gethostname()} has been writing there since 20"
    assert len(said) == 2 * STEPS
    assert all(f"{output}: {who}" in words for words in said)
    place.check_equals_whole(output)
    assert [path.name for path in tmp_path.iterdir()] == ["me"]


def test_a_second_preparation_is_refused_while_the_first_one_goes_on(
    place: Place, tmp_path: Path
) -> None:
    target = place.clips, tmp_path / "prepared", choose_base(str(place.root / "base"))
    refused = []

    def intrude(*_: Any) -> None:
        with pytest.raises(UserError, match="has been writing there since"):
            prepare_voice(*target, tiny_config())
        refused.append(1)

    prepare_voice(*target, tiny_config(), progress=intrude)
    assert len(refused) == 4
    assert _names(tmp_path / "prepared") <= {"prepared", *_names(place.whole / "prepared")}


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(("has_locks", "is_whole"), [(True, False), (False, True)])
def test_a_lock_that_a_dead_process_left_blocks_nobody(
    place: Place, cut: Path, monkeypatch: Any, has_locks: bool, is_whole: bool
) -> None:
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", _no_locks)
    holder = {"pid": _dead_process(), "host": socket.gethostname(), "since": "?", "started": "1"}
    text = json.dumps(holder)
    (cut / LOCK_FILE).write_text(text if is_whole else text[:9])
    finetune.resume(cut, Silent())
    place.check_equals_whole(cut)


def test_without_locks_the_process_that_is_named_keeps_others_out(
    place: Place, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    output, said = tmp_path / "me", []

    def intrude() -> None:
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            finetune.resume(output, Silent())
        lock = output / LOCK_FILE
        held = lock.read_text()
        lock.write_text(json.dumps(json.loads(held) | {"host": "elsewhere"}))
        with pytest.raises(UserError, match=r"on elsewhere .* delete .* if that one has ended"):
            finetune.resume(output, Silent())
        lock.write_text(held)
        said.append(1)

    finetune.start(place.options(output), Calling(intrude))
    assert said
    place.check_equals_whole(output)


# What ends a run, and what is left.


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("board", [False, True])
def test_a_disk_that_fills_up_between_checkpoints_is_said_and_the_run_goes_on(
    place: Place, tmp_path: Path, small_files: Any, board: bool
) -> None:
    if board:
        pytest.importorskip("tensorboardX")
    output = tmp_path / "me"
    options = place.options(output, tensorboard=board)

    def fill() -> None:
        small_files(50 if board else (output / "losses.jsonl").stat().st_size + 9)

    with pytest.raises(UserError, match=r"cannot be written \(.*\); free some space and go on"):
        finetune.start(options, Calling(fill))
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    small_files(soft)
    finetune.resume(output, Silent(), tensorboard=False)
    for name in WEIGHTS:
        assert (output / name).read_bytes() == (place.whole / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    place: Place, tmp_path: Path, monkeypatch: Any, number: signal.Signals
) -> None:
    signals = [number]
    if number == signal.SIGHUP:
        signals.append(number)  # the system's and the shell's
    monkeypatch.setattr(
        screen.TerminalScreen, "step", lambda *_: signals and signal.raise_signal(signals.pop())
    )
    output = tmp_path / "me"
    done = CliRunner().invoke(app, place.command(output))
    assert done.exit_code == 128 + number
    stopped = len((output / "losses.jsonl").read_text().splitlines())
    assert 1 <= stopped < STEPS
    assert done.stderr == f"stopped at step {stopped}; go on with --resume {output}\n"
    assert mlx_vits.load(output).info == f"1epoch_{stopped}iteration"
    monkeypatch.undo()
    finetune.resume(output, Silent())
    for name in WEIGHTS[:3]:
        assert (output / name).read_bytes() == (place.whole / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_training_tidies_up(
    place: Place, tmp_path: Path, monkeypatch: Any, number: signal.Signals
) -> None:
    monkeypatch.setattr(screen.TerminalScreen, "preparing", lambda *_: signal.raise_signal(number))
    done = CliRunner().invoke(app, place.command(tmp_path / "me"))
    assert (done.exit_code, done.stderr) == (128 + number, "stopped.\n")
    assert [path.name for path in tmp_path.iterdir()] == [".me.prepared.partial"]  # to go on from
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_hangup_that_nohup_has_ignored_stays_ignored(
    place: Place, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(screen.TerminalScreen, "step", lambda *_: signal.raise_signal(1))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = CliRunner().invoke(app, place.command(tmp_path / "me"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.exit_code == 0, done.output
    place.check_equals_whole(tmp_path / "me")


def test_a_closed_terminal_does_not_end_what_is_shown_there(monkeypatch: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        shown = screen.TerminalScreen()
        for _ in range(3):
            shown.say("nobody reads this")
        print("nor this", flush=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v is Linux's")
def test_a_limit_of_addresses_is_said_beforehand(capsys: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = 1 << 46
    if before[0] != resource.RLIM_INFINITY:
        pytest.skip("there is such a limit already")
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        screen.TerminalScreen()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "Addresses are limited to 70368.7 GB (ulimit -v)" in capsys.readouterr().out


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed(
    place: Place, run: Path
) -> None:
    for path in run.iterdir():
        if path.name not in ("run.json", "prepared"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finetune.resume(run, Silent())
    place.check_equals_whole(run)


def test_leftovers_of_killed_processes_are_swept_and_no_others(
    place: Place, run: Path, tmp_path: Path
) -> None:
    runs = run.parent
    dead = [
        run / ".mlx_vits-0123456789abcdef.tmp",
        run / "checkpoints" / ".mlx_vits-00112233aabbccdd.tmp",
        run / "prepared" / "5-wav32k" / ".mlx_vits-00112233aabbccdd.tmp",
        runs / ".me-0123abcd.new" / "prepared",
        runs / ".me-0123abce.old" / "prepared",
    ]
    kept = [
        run / ".mlx_vits-notes.tmp",
        run / "samples" / ".mlx_vits-fedcba9876543210.tmp",
        runs / ".me-summer.old" / "photo",
        runs / ".you-0123abcd.new" / "prepared",
        runs / ".me-89abcdef.new" / "prepared",
    ]
    for path in (*dead, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("something")
    for path in (kept[1], kept[4].parent):  # of living processes
        fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
    finetune.resume(run, Silent())
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in kept)


def test_a_folder_that_a_kill_left_aside_gets_its_name_back(place: Place, tmp_path: Path) -> None:
    target = place.clips, tmp_path / "prepared", choose_base(str(place.root / "base"))
    output = prepare_voice(*target, tiny_config())
    aside = tmp_path / ".prepared-0123abcd.old"
    before = {path.name: path.stat().st_mtime_ns for path in output.rglob("*.*")}
    output.rename(aside)
    prepare_voice(*target, tiny_config())
    assert {path.name: path.stat().st_mtime_ns for path in output.rglob("*.*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_finder_looking_at_the_data_does_not_end_a_run(place: Place, run: Path) -> None:
    (run / "prepared" / "5-wav32k" / ".DS_Store").write_text("icons")
    assert finetune.resume(run, Silent())["steps"] > 0
