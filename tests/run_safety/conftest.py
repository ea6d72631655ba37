"""The runs that these tests copy, cut short or compare with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_vits import finetune
from tests.support.runs import Calling, Place, Stopped


@pytest.fixture(scope="session")
def place(tmp_path_factory: Any) -> Place:
    """A base, clips, and the run that nothing disturbed; not to be changed."""
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
