"""A voice of a few clips that is prepared again and again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.base import Base
from mlx_vits.preprocessing import making
from mlx_vits.preprocessing.features import EncoderClip, batch_features
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import DroppedClip
from tests.support.tiny import RATE, TEXTS, hum, tiny_config


def watch_encoder(monkeypatch: Any) -> list[str]:
    """Names of the clips whose features are computed, in order; it grows as they are."""
    names: list[str] = []

    def counted(encoder: Any, clips: list[EncoderClip]) -> Any:
        names.extend(Path(clip.name).name for clip in clips)
        return batch_features(encoder, clips)

    monkeypatch.setattr(making, "batch_features", counted)
    return names


@functools.cache
def take(number: int) -> np.ndarray:
    """Something voiced, of 1.2 s and more, that is not to be changed."""
    return hum(1.2 + 0.2 * number, 120 + 20 * number)


class Bench:
    """A voice of a few clips, and where it is prepared."""

    def __init__(self, root: Path, base: Base, clips: int = 3, version: str = "v2"):
        self.source, self.output = root / "clips", root / "prepared"
        self.partial = root / ".prepared.partial"
        self.base, self.config = base, tiny_config(version)
        self.source.mkdir(parents=True)
        for index in range(clips):
            self.write(f"clip_{index}.wav", take(index), TEXTS[index])

    def make(self, base: Base | None = None, **given: Any) -> list[DroppedClip]:
        """Prepares; the clips that were left out are returned."""
        dropped: list[DroppedClip] = []
        calls = {"progress": given.pop("progress", None), "drop": dropped.append}
        place = self.source, self.output, base or self.base, self.config
        prepare_voice(*place, PrepareOptions(**given), **calls)
        return dropped

    def stop_after(self, clips: int, **given: Any) -> None:
        def progress(done: int, count: int, name: str) -> None:
            if done == clips:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.make(progress=progress, **given)

    def write(self, name: str, wav: np.ndarray, text: str | None = "one more") -> None:
        write_wav(self.source / name, wav, RATE)
        if text is not None:
            with (self.source / "transcripts.tsv").open("a", encoding="utf-8") as file:
                file.write(f"{name}\t{text}\n")

    def tell(self, **texts: str) -> None:
        """Writes the transcripts anew, of clips by their names without an ending."""
        lines = [f"{name}.wav\t{text}\n" for name, text in texts.items()]
        (self.source / "transcripts.tsv").write_text("".join(lines), encoding="utf-8")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.suffix != ".json"}
