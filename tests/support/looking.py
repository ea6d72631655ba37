"""What `mlx-vits inspect` says of a file, and files by hand for it to look at."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.tools.inspect.gather import gather
from mlx_vits.tools.inspect.reading import read_subject
from mlx_vits.tools.inspect.show import show
from mlx_vits.tools.pages import plain
from tests.support.goldens import golden


class Look(NamedTuple):
    """Both outputs for one file; `net` is the first net of the JSON."""

    facts: Any
    net: Any
    text: str


def look_at(path: Any, against: Any = None) -> Look:
    other = read_subject(str(against)) if against is not None else None
    facts = gather(read_subject(str(path)), other)
    screen = Console(file=io.StringIO(), width=100, highlight=False)
    show(facts, screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 100 or "/" in line for line in text.splitlines())  # a path is not cut
    # Through the text, to be sure that it is JSON.
    values = json.loads(json.dumps(plain(facts), allow_nan=False))
    return Look(values, values["nets"][0], text)


def said_of(net: Any, level: str = "problem") -> str:
    return "\n".join(r["words"] for r in net["remarks"] if r["level"] == level)


def write_pth(path: Path, weight: dict[str, Any], model: SynthesizerTrn, **more: Any) -> Path:
    """A pretrained generator by hand."""
    content = {"weight": weight, "config": model.config.to_dict(), "info": "pretrained"}
    write_torch_archive(path, content | more)
    return path


def levels_of(net: Any, name: str) -> Any:
    return next(row["levels"] for row in net["layers"] if row["name"] == name)


def golden_voice(version: str) -> Path:
    return golden(f"sovits_{version}", f"golden_{version}_e8_s64.pth")
