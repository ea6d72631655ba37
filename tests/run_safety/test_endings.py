"""What ends a run, what is left of it, and how it goes on."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.cli import app
from mlx_vits.errors import UserError
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.report import terminal as screen
from tests.support.runs import STEPS, WEIGHTS, Calling, Place
from tests.support.tiny import Silent, tiny_config


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
