"""A folder has one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.errors import UserError
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.system.locks import LOCK_FILE
from tests.support.runs import STEPS, Calling, Place, names
from tests.support.tiny import Silent, tiny_config


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
    assert names(tmp_path / "prepared") <= {"prepared", *names(place.whole / "prepared")}


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
