"""What reading a voice leaves in memory: the tensors once, not in every form they pass through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.base import load_generator
from mlx_vits.checkpoints.state_dict import expected_shapes, load_state, state_of
from mlx_vits.checkpoints.voice_file import read_voice, write_voice
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import SynthesizerTrn
from tests.support.goldens import GOLDENS, ROOT, generator_weights, golden, values

BENCH = ROOT / "scripts" / "bench_reading.py"
GOLDEN = GOLDENS / "sovits_v2" / "golden_v2_e8_s64.pth"

only_linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of resident memory is Linux's to tell"
)


def rise(kind: str, path: Path) -> float:
    """How far a fresh process that reads the file rises above its imports, in files."""
    command = [sys.executable, str(BENCH), str(path), "--kind", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["rise"] / path.stat().st_size)


@only_linux
def test_a_voice_takes_its_own_size_and_a_model_twice_that(tmp_path: Path) -> None:
    """Some 5 MB of objects come on top. Holding both forms, and copies of both, takes 3.7 files."""
    widths = {"upsample_initial_channel": 256, "filter_channels": 384}
    config = Config.from_dict({"model": widths | {"version": "v1"}})  # the exports of v2 are padded
    shapes = expected_shapes(SynthesizerTrn(config))
    state = {
        name: mx.ones(shape) for name, shape in shapes.items() if not name.startswith("enc_q.")
    }
    path = tmp_path / "voice.pth"
    write_voice(path, state, config, info="", name="voice")
    assert path.stat().st_size > 40e6
    assert rise("fp16", path) < 1.3
    assert rise("fp32", path) < 2.5


@only_linux
@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2", "v2Pro", "v2ProPlus"])
def test_a_full_size_voice(version: str, tmp_path: Path) -> None:
    folder = f"full_{version}"
    golden(folder, "state_dict.json")
    config = Config.from_dict(values(folder, "meta.json")["config"] | {"version": version})
    state = {name: mx.array(array) for name, array in generator_weights(folder).items()}
    path = tmp_path / "voice.pth"
    write_voice(path, state, config, info="", name="voice")
    assert rise("fp16", path) < 1.2
    assert rise("fp32", path) < 2.3


@pytest.mark.parametrize("scheme", ["upstream", "plan", "folded"])
def test_a_model_is_the_same_whether_its_tensors_were_kept(scheme: Any) -> None:
    kept, consumed = read_voice(GOLDEN), read_voice(GOLDEN)
    ours = state_of(load_generator(consumed, scheme, consume=True))
    theirs = state_of(load_generator(kept, scheme))
    assert len(consumed.tensors) == 0
    assert list(ours) == list(theirs) == list(kept.tensors)
    for name, array in theirs.items():
        assert mx.array_equal(ours[name], array), name


def test_tensors_are_cast_alike_from_numpy_and_from_mlx() -> None:
    config = read_voice(GOLDEN).config
    for weights in (read_voice(GOLDEN).tensors, generator_weights("sovits_v2")):
        first, second = SynthesizerTrn(config), SynthesizerTrn(config)
        numpys = {name: np.array(array) for name, array in weights.items()}
        arrays = {name: mx.array(array) for name, array in numpys.items()}
        lacks = () if "enc_q.pre.bias" in weights else ("enc_q.",)
        load_state(first, numpys, source="numpy", may_lack=lacks)
        load_state(second, arrays, source="mlx", may_lack=lacks, consume=True)
        assert not arrays
        ours, theirs = state_of(first), state_of(second)
        for name in numpys:
            assert ours[name].dtype == mx.float32
            assert mx.array_equal(ours[name], theirs[name]), name


def test_what_is_refused_is_not_emptied() -> None:
    file = read_voice(GOLDEN)
    tensors = dict(file.tensors) | {"unknown": np.zeros(1)}
    with pytest.raises(CheckpointError, match="unknown"):
        load_generator(file._replace(tensors=tensors), consume=True)
    assert len(tensors) == len(file.tensors) + 1
