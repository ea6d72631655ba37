"""Our exports before GPT-SoVITS's own steps of opening a voice (`support/upstream_loader.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import read_voice, write_voice
from tests.support import upstream_loader
from tests.support.goldens import (
    GOLDENS,
    ROOT,
    SHARED,
    generator,
    generator_weights,
    golden,
    values,
)

VERSIONS = ["v2", "v1", "v2Pro", "v2ProPlus"]
HEADERS = {"v2Pro": b"05", "v2ProPlus": b"06"}
TENSORS = {"v1": 673, "v2": 673, "v2Pro": 678, "v2ProPlus": 678}


def open_in_upstream(files: list[Path], expected: list[Path]) -> list[dict[str, Any]]:
    """In a process of its own: PyTorch and MLX bring a BLAS each."""
    pytest.importorskip("torch")
    command = [sys.executable, "-W", "error", "-m", "tests.support.upstream_loader"]
    command += [*map(str, files), "--expected", *map(str, expected)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def names_of(version: str) -> Path:
    """Upstream's names and shapes; v2's are copied into the project."""
    path = SHARED / "spec" / "keys" / f"sdG_{version}.json"
    if not path.exists() and version == "v2":
        return GOLDENS / "names_generator_v2.json"
    if not path.exists():
        pytest.skip(f"upstream's names of {version} are in ../shared, which is absent")
    return path


def assert_speaks(report: dict[str, Any], version: str) -> None:
    assert report["version"] == report["stated_version"] == version
    assert report["symbols"] == ("v1" if version == "v1" else "v2")
    assert report["missing"] == report["unexpected"] == report["misshapen"] == []
    assert report["dtypes"] == ["torch.float16"]
    assert report["scattered"] == []
    assert report["inited"] == [1.0]
    assert report["keys"] == ["weight", "config", "info"]
    assert not any("enc_q" in name for name in report["names"])
    assert "dec.ups.0.weight_g" in report["names"]
    assert "dec.ups.0.weight_v" in report["names"]
    buffers = {name.rpartition(".")[2] for name in report["names"] if "_codebook" in name}
    assert buffers == {"inited", "cluster_size", "embed", "embed_avg"}
    assert report["arguments"]["spec_channels"] == 1025
    assert report["arguments"]["semantic_frame_rate"] == "25hz"


def test_the_stand_in_tells_versions_in_upstreams_order(tmp_path: Path) -> None:
    path = tmp_path / "v"
    for head, size, model in (
        (b"PK", 8192, "v1"),
        (b"PK", 82978 * 1024 - 1, "v1"),
        (b"PK", 82978 * 1024, "v2"),
        (b"PK", 700 * 1024**2, "v3"),
        (b"00", 82978 * 1024, "v1"),
        (b"01", 8192, "v2"),
        (b"05", 8192, "v2Pro"),
        (b"06", 700 * 1024**2, "v2ProPlus"),
    ):
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)  # takes no room
        assert upstream_loader.detect_version(path).model == model
    path.write_bytes(b"99")
    with pytest.raises(KeyError):
        upstream_loader.detect_version(path)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of upstream's own small voices, of our exports of them, and of one with a folded layer."""
    folder = tmp_path_factory.mktemp("voices")
    files: dict[str, Path] = {}
    expected: dict[str, Path] = {}
    for version in VERSIONS:
        parts = (f"sovits_{version}", f"golden_{version}_e8_s64.pth")
        if not any(root.joinpath(*parts).exists() for root in (GOLDENS, SHARED / "goldens")):
            continue
        theirs = golden(*parts)
        files[f"their {version}"] = theirs
        files[f"our {version}"] = mlx_vits.load(theirs).save(folder / f"{version}.pth")
        expected |= {f"their {version}": theirs, f"our {version}": theirs}
    file = read_voice(files["their v2"])
    state = {name: mx.array(array) for name, array in file.tensors.items()}
    state.pop("dec.ups.0.weight_g")
    state["dec.ups.0.weight"] = state.pop("dec.ups.0.weight_v")
    state["enc_p.proj.bias"] = mx.zeros(3)
    files["folded"], expected["folded"] = folder / "folded.pth", files["their v2"]
    write_voice(files["folded"], state, file.config, info="", name="folded")
    found = open_in_upstream(list(files.values()), list(expected.values()))
    return {name: report | {"file": files[name]} for name, report in zip(files, found, strict=True)}


@pytest.mark.torch
@pytest.mark.parametrize("version", VERSIONS)
def test_every_golden_voice_that_we_export(
    reports: dict[str, dict[str, Any]], version: str
) -> None:
    if f"our {version}" not in reports:
        pytest.skip(f"the golden voice of {version} is in ../shared, which is absent")
    theirs, ours = reports[f"their {version}"], reports[f"our {version}"]
    # Upstream's own file as well: what is asked of ours has to hold for it.
    for report in (theirs, ours):
        assert_speaks(report, version)
        # These are small: only the header tells anything, and the table's rows mend the rest.
        guess = ["v2", version, False] if "Pro" in version else ["v1", "v1", False]
        assert report["detected"] == guess
        assert report["info"] == "8epoch_64iteration"
    assert ours["file"].read_bytes()[:2] == HEADERS.get(version, b"PK")
    for what in ("names", "crc32", "arguments"):
        assert ours[what] == theirs[what]
    assert set(theirs["config_keys"]) <= set(ours["config_keys"])


@pytest.mark.torch
def test_what_upstream_could_not_load_is_seen(reports: dict[str, dict[str, Any]]) -> None:
    """The stand-in is no rubber stamp."""
    assert reports["folded"]["missing"] == ["dec.ups.0.weight_g", "dec.ups.0.weight_v"]
    assert reports["folded"]["unexpected"] == ["dec.ups.0.weight"]
    assert reports["folded"]["misshapen"] == ["enc_p.proj.bias"]


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_full_size_voice_that_we_export(version: str, tmp_path: Path) -> None:
    expected = names_of(version)
    weights = generator_weights(f"full_{version}")
    model = generator(f"full_{version}")
    path = tmp_path / "voice_e1_s2.pth"
    write_voice(path, state_of(model), model.config, info="1epoch_2iteration", name="voice")
    (report,) = open_in_upstream([path], [expected])
    assert_speaks(report, version)
    assert report["detected"] == ["v1" if version == "v1" else "v2", version, False]
    assert len(report["names"]) == TENSORS[version]
    assert report["names"] == [
        name for name in json.loads(expected.read_text()) if "enc_q" not in name
    ]
    for name, crc32 in report["crc32"].items():
        assert crc32 == zlib.crc32(weights[name].astype(np.float16).tobytes()), name
    assert report["arguments"]["segment_size"] == 32
    stated = values(f"full_{version}", "meta.json")["config"]["model"]
    for name in set(stated) & set(report["arguments"]) - {"version"}:
        assert report["arguments"][name] == stated[name], name
