"""What `mlx-vits check` says of a folder, and ways to damage one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.cli import app
from mlx_vits.tools.check.facts import Verdict, VoiceFacts
from mlx_vits.tools.check.gather import gather
from mlx_vits.tools.check.subject import CheckOptions, find_subject
from mlx_vits.tools.check.verdict import judge

RUNNER = CliRunner()


def check(folder: Path, **options: Any) -> tuple[VoiceFacts, Verdict]:
    facts = gather(find_subject(str(folder), CheckOptions(**options)))
    return facts, judge(facts)


def said(verdict: Verdict) -> str:
    return " ".join(remark.words for remark in verdict.remarks)


def run(*arguments: Any) -> Any:
    return RUNNER.invoke(app, ["check", *map(str, arguments)])


def change_wav(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    recording = read_audio(path)
    write_wav(path, change(recording.wav), recording.rate)
