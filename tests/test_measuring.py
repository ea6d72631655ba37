"""The scripts that measure memory, and how a step's time grows: what they count and say."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_vits.checkpoints.base import Base
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.goldens import ROOT
from tests.support.tiny import SEGMENT, make_base, make_voice, tiny_config

sys.path.insert(0, str(ROOT / "scripts"))
import measure_memory
import measure_scaling
from measure_scaling import Size, Times

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Base:
    return make_base(tmp_path_factory.mktemp("measuring") / "base")


@pytest.fixture(scope="module")
def mixed(base: Base, tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    clips = make_voice(root / "clips", 20)
    source = prepare_voice(clips, root / "prepared", base, CONFIG, PrepareOptions(held_out=0))
    return measure_memory.make_mixed_voice(source, root / "mixed", CONFIG)


def test_clips_are_of_every_length(mixed: Path) -> None:
    voice = PreparedVoice(mixed, CONFIG)
    frames = [len(voice.read(item).spec) for item in voice.items]
    assert (len(frames), min(frames), max(frames)) == (24, 50, 500)
    assert len(set(frames)) == 24


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_measured_early_and_late(compiled: bool, base: Base, mixed: Path) -> None:
    options = VITSTrainingConfig(steps=6, batch_size=2, segment_size=SEGMENT, compiled=compiled)
    untouched = mx.compile
    report = measure_memory.measure(base, mixed, options, 3)
    assert mx.compile is untouched
    assert [memory["step"] for memory in report["memory"]] == [3, 6]
    assert abs(report["growth"]["active"]) < 0.05
    assert report["memory"][0]["resident"] > report["memory"][0]["active"] > 0
    assert 1 < report["batch_shapes"] <= 6
    if compiled:  # every function that is compiled is traced once for each shape
        assert report["traces"]
        assert set(report["traces"]) <= {0, report["batch_shapes"]}
    assert 0 <= report["waiting_share"] < 1


def test_times_of_a_step_are_measured() -> None:
    found = measure_scaling.measure(CONFIG, [Size(1, 1), Size(2, 1)], 1, compiled=False)
    assert list(found) == [Size(1, 1), Size(2, 1)]
    assert all(taken.wall > 0 and taken.cores > 0 for taken in found.values())


def test_growth_is_told_from_a_linear_one() -> None:
    assert measure_scaling.growth([1, 2, 4], [1, 2, 4]) == 1
    assert measure_scaling.growth([1, 2, 4], [1, 1.5, 2]) < 1
    assert measure_scaling.growth([1, 2, 4], [1, 1.5, 4]) > 1


def test_the_plot_is_whole() -> None:
    times = {
        size: Times(size.batch * size.seconds / 10, 1.0) for size in measure_scaling.all_sizes()
    }
    report = measure_scaling.report_of(times, lambda taken: taken.wall)
    assert report["growth_by_batch"] == report["growth_by_length"] == 1
    assert report["by_batch"] == [0.4, 0.8, 1.6]
    plot = measure_scaling.draw([("clips", (1, 2, 4), report["by_batch"])], "a machine", "seconds")
    root = ElementTree.fromstring(plot)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 3
