"""PyTorch's zip files: what we read is what was written, by GPT-SoVITS, by PyTorch and by us."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_vits.checkpoints.torch_archive import (
    read_torch_archive,
    read_version_code,
    write_torch_archive,
)
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.system.files import atomic_write

GOLDEN = Path(__file__).parent / "goldens/sovits_v2/golden_v2_e8_s64.pth"
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")


def arrays() -> dict[str, np.ndarray]:
    """Every dtype and every awkward shape and memory order, with NaNs and subnormals."""
    draw = np.random.default_rng(7)
    found = {}
    for code in DTYPES:
        dtype = np.dtype(code)
        raw = draw.integers(0, 2 if code == "?" else 256, 60 * dtype.itemsize, dtype=np.uint8)
        found[f"{code} plain"] = raw.view(dtype).reshape(3, 4, 5)
        found[f"{code} scalar"] = np.array(found[f"{code} plain"][0, 0, 0])
        found[f"{code} empty"] = np.zeros((0, 3), dtype)
    found["transposed"] = found["f4 plain"].transpose(2, 0, 1)
    found["reversed"] = found["f4 plain"][::-1, ::2]
    found["expanded"] = np.broadcast_to(np.float32(1.5), (4, 3))
    found["big endian"] = np.arange(5, dtype=">f4")
    return found


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, types included."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        b = np.asarray(b, b.dtype.newbyteorder("<"))
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def tree() -> dict[str, Any]:
    return {
        "weight": arrays(),
        "config": {"model": {"version": "v2", "rates": [10, 8, 2]}, "empty": [{}, [], ()]},
        "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**70), 1e-9, -0.0],
        "others": (None, True, False, "文 \n é", "", ("betas", 0.8, 0.99)),
        "optimizer": {"state": {0: {"step": np.array(3, np.float32)}, 300: {}}},
        "again": "weight",
    }


def read_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_torch_archive(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_golden_voice() -> None:
    voice = read_torch_archive(GOLDEN)
    assert list(voice) == ["weight", "config", "info"]
    assert voice["info"] == "8epoch_64iteration"
    assert len(voice["weight"]) == 601
    assert all(a.dtype == np.float16 for a in voice["weight"].values())
    assert voice["weight"]["enc_p.text_embedding.weight"].shape == (732, 20)
    assert voice["config"]["model"]["version"] == "v2"
    assert type(voice["config"]) is dict
    assert type(voice["config"]["train"]) is dict
    assert voice["config"]["model"]["resblock_dilation_sizes"] == [[1, 3, 5]] * 3
    assert read_version_code(GOLDEN) is None


def test_golden_voice_matches_the_bytes_in_the_zip() -> None:
    weight = read_torch_archive(GOLDEN)["weight"]
    with zipfile.ZipFile(GOLDEN) as archive:
        blocks = {n: archive.read(n) for n in archive.namelist() if "/data/" in n}
    in_file = [blocks[n] for n in sorted(blocks, key=lambda n: int(n.rpartition("/")[2]))]
    assert [a.tobytes() for a in weight.values()] == in_file


def test_golden_voice_survives_a_round_trip(tmp_path: Path) -> None:
    voice = read_torch_archive(GOLDEN)
    write_torch_archive(tmp_path / "voice.pth", voice)
    assert same(read_torch_archive(tmp_path / "voice.pth"), voice)


def test_round_trip_of_every_kind(tmp_path: Path) -> None:
    write_torch_archive(tmp_path / "all.pth", tree())
    assert same(read_torch_archive(tmp_path / "all.pth"), tree())


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        write_torch_archive(tmp_path / name, tree(), version_code="05", pad_to=50_000)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_tensor_data_is_aligned_and_checksums_hold(tmp_path: Path) -> None:
    path = tmp_path / "all.pth"
    write_torch_archive(path, tree())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            at = info.header_offset
            lengths = whole[at + 26], whole[at + 28] + 256 * whole[at + 29]
            assert (at + 30 + sum(lengths)) % 64 == 0
            assert info.compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize("code", ["05", "06", "42"])
def test_version_code(tmp_path: Path, code: str) -> None:
    path = tmp_path / "voice.pth"
    write_torch_archive(path, {"info": code}, version_code=code)
    assert path.read_bytes()[:4] == code.encode() + b"\x03\x04"
    assert read_version_code(path) == code
    assert read_torch_archive(path) == {"info": code}


@pytest.mark.parametrize("code", ["5", "050", "PK", "", "½0"])
def test_version_code_must_be_two_digits(tmp_path: Path, code: str) -> None:
    with pytest.raises(ValueError, match="two digits"):
        write_torch_archive(tmp_path / "voice.pth", {}, version_code=code)
    assert not list(tmp_path.iterdir())


def test_padding(tmp_path: Path) -> None:
    path = tmp_path / "voice.pth"
    write_torch_archive(path, tree())
    natural = path.stat().st_size
    for wish in (0, natural, natural + 1, natural + 5000, 200_000):
        write_torch_archive(path, tree(), pad_to=wish)
        assert max(natural, wish) <= path.stat().st_size <= max(natural, wish) + 250
        assert same(read_torch_archive(path), tree())


@pytest.mark.parametrize("bad", [b"bytes", {1.5: 0}, np.zeros(2, "c8"), {1}, np.float32(1)])
def test_what_cannot_be_written_is_our_defect(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(TypeError):
        write_torch_archive(tmp_path / "x.pth", {"a": [bad]})
    assert not list(tmp_path.iterdir())


def test_an_import_named_by_the_file_never_happens(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "utils.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    read_torch_archive(GOLDEN)
    assert "utils" not in sys.modules


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert "no such file" in read_error(path)
    assert "is a folder" in read_error(tmp_path)
    old = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02"
    for content, words in {
        b"": "is empty",
        b"P": "not a PyTorch file",
        b"RIFF....WAVE": "is a sound file",
        b"\n<!DOCTYPE html><html>404</html>": "is a web page, not a model",
        b"\x1f\x8b\x08" + bytes(60): "is compressed with gzip; unpack it",
        b"\x80\x02}q\x00.": "is a bare Python pickle",
        (90).to_bytes(8, "little") + b'{"a": {': "is a safetensors file; give it a name in",
        b'{"weight": {}}': "is JSON text, not a model",
        bytes(4096): "nothing but one repeated byte",
        b"PK\x03\x04": "cut short",
        b"05\x03\x04" + bytes(100): "cut short",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        old: "old non-zip format; open it once in PyTorch 1.6 or newer and save it again",
    }.items():
        path.write_bytes(content)
        assert words in read_error(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_version_code(tmp_path / "none.pth")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in read_error(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    shutil.copy(GOLDEN, path)
    path.chmod(0)
    assert "Permission denied" in read_error(path)


class FullDisk(io.BytesIO):
    """A file on a disk with room for 1000 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "voice.pth"
    path.write_bytes(b"the old one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda fd, mode: (os.close(fd), FullDisk())[1])
        with pytest.raises(CheckpointError) as caught:
            write_torch_archive(path, tree())
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); free some space or write elsewhere"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["voice.pth"]
    assert path.read_bytes() == b"the old one"


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    script = """
import resource, sys
import numpy as np
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_torch_archive(sys.argv[1], {"x": np.zeros(1_000_000)})
except CheckpointError as error:
    print(error)
"""
    path = tmp_path / "voice.pth"
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: cannot be written (File too large)")
    assert done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="make the folder"):
        write_torch_archive(tmp_path / "no/voice.pth", {})


def test_atomic_write_leaves_nothing_after_any_error(tmp_path: Path) -> None:
    def write_and_raise(error: BaseException) -> None:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"half")
            raise error

    for error in (ValueError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_and_raise(error)
    with pytest.raises(UserError, match="cannot be written"):
        write_and_raise(OSError(errno.EIO, "Input/output error"))
    # A file that the body failed to open is not the one that cannot be written.
    with pytest.raises(FileNotFoundError):
        write_and_raise(FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere"))
    assert not list(tmp_path.iterdir())


TORCH_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import torch
folder = Path(sys.argv[1])

# Ours, opened by PyTorch.
found = {}
for name in ("plain", "padded", "coded"):
    path = folder / f"{name}.pth"
    if name == "coded":
        path.write_bytes(b"PK" + path.read_bytes()[2:])
    found[name] = torch.load(path, weights_only=True)
for name, loaded in found.items():
    np.savez(folder / f"{name}.npz", **{k: v.numpy() for k, v in loaded["weight"].items()})
rest = {k: v for k, v in found["plain"].items() if k not in ("weight", "optimizer")}
(folder / "rest.json").write_text(json.dumps(rest))
torch.load(folder / "plain.pth", weights_only=True, mmap=True)

# PyTorch's, for us to open.
torch.manual_seed(0)
layer = torch.nn.Linear(5, 4)
optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
layer(torch.ones(1, 5)).sum().backward()
optimizer.step()
base = torch.randn(6, 8)
tensors = {
    "base": base, "row": base[2], "column": base[:, 3], "t": base.t(), "window": base[1:4, 2:7:2],
    "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "half": base.half(),
    "double": base.double(), "long": torch.arange(5), "int": torch.arange(5).int(),
    "short": torch.arange(5).short(), "char": torch.arange(-3, 3).to(torch.int8),
    "byte": torch.arange(5).byte(), "bool": torch.arange(5) % 2 == 0,
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}
brain = torch.cat([torch.randn(50), torch.tensor([float("nan"), float("inf"), 1e-40])]).bfloat16()
torch.save({"tensors": tensors, "brain": brain, "layer": layer.state_dict(),
            "parameter": layer.weight, "optimizer": optimizer.state_dict()}, folder / "theirs.pth")
for protocol in (3, 4, 5):
    torch.save({"weight": base, "raw": b"\\x00\\xff"}, folder / f"protocol{protocol}.pth",
               pickle_protocol=protocol)
torch.save({"weight": base}, folder / "old.pth", _use_new_zipfile_serialization=False)
state = optimizer.state_dict()["state"]
np.savez(folder / "theirs.npz", brain=brain.float().numpy(), weight=layer.weight.detach().numpy(),
         exp_avg=state[0]["exp_avg"].numpy(), **{k: v.numpy() for k, v in tensors.items()})
"""


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that PyTorch wrote, and what it found in ours; in a process of its own."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("torch")
    write_torch_archive(folder / "plain.pth", tree())
    write_torch_archive(folder / "padded.pth", tree(), pad_to=1_000_000)
    write_torch_archive(folder / "coded.pth", tree(), version_code="06")
    subprocess.run([sys.executable, "-W", "error", "-c", TORCH_SCRIPT, folder], check=True)
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("name", ["plain", "padded", "coded"])
def test_torch_opens_ours(torch_folder: Path, name: str) -> None:
    with np.load(torch_folder / f"{name}.npz") as found:
        assert same({k: found[k] for k in found.files}, arrays())
    rest = json.loads((torch_folder / "rest.json").read_text())
    assert rest["numbers"] == tree()["numbers"]
    assert rest["config"]["model"] == tree()["config"]["model"]


@pytest.mark.torch
def test_we_open_theirs(torch_folder: Path) -> None:
    found = read_torch_archive(torch_folder / "theirs.pth")
    with np.load(torch_folder / "theirs.npz") as archive:
        expected = {key: archive[key] for key in archive.files}
    assert all(same(a, expected[name]) for name, a in found["tensors"].items())
    assert all(a.flags.c_contiguous for a in found["tensors"].values())
    assert same(found["brain"], expected["brain"])
    assert same(found["layer"]["weight"], expected["weight"])
    assert list(found["layer"]) == ["weight", "bias"]
    assert same(found["parameter"], expected["weight"])
    assert same(found["optimizer"]["state"][0]["exp_avg"], expected["exp_avg"])
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_we_open_other_pickle_protocols(torch_folder: Path, protocol: int) -> None:
    found = read_torch_archive(torch_folder / f"protocol{protocol}.pth")
    assert found["raw"] == b"\x00\xff"
    assert found["weight"].shape == (6, 8)


@pytest.mark.torch
def test_old_format_of_torch_is_named(torch_folder: Path) -> None:
    assert "PyTorch's old non-zip format" in read_error(torch_folder / "old.pth")
