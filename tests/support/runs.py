"""A run that nothing disturbed, to compare others with, and screens that disturb one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice

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
        assert names(run) == names(self.whole)
        for name in WEIGHTS:
            assert (run / name).read_bytes() == (self.whole / name).read_bytes(), name


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
