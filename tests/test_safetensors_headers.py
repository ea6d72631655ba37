"""A safetensors file's header is checked before MLX believes it: one sentence each, no abort."""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_vits.checkpoints.safetensors_header import read_header
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.errors import CheckpointError
from mlx_vits.tools.inspect.reading import read_subject
from tests.support.looking import look_at
from tests.support.tiny import make_base

TWO = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
}


def _file(header: Any, data: bytes = bytes(32), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _with(**changes: Any) -> bytes:
    return _file(TWO | {"a": TWO["a"] | changes})


CASES: dict[str, tuple[bytes, str]] = {
    "200 axes": (_with(shape=[6] + [1] * 200), "the shape of a is impossible"),
    "axis past 32 bits": (_with(shape=[2**31, 0], data_offsets=[0, 0]), "shape of a is impossible"),
    "product past 64 bits": (_with(shape=[2**31 - 1] * 4), "the shape of a is impossible"),
    "empty and immense": (_with(shape=[0] + [2**30] * 3), "the shape of a is impossible"),
    "negative axis": (_with(shape=[-2, -3]), "the shape of a is impossible"),
    "axis of no integer": (_with(shape=[2.0, 3]), "the shape of a is impossible"),
    "axis of truth": (_with(shape=[True, 6]), "the shape of a is impossible"),
    "shape of no list": (_with(shape="23"), "the shape of a is impossible"),
    "another size": (_with(shape=[2, 4]), "the shape of a does not fit its bytes"),
    "offsets turned": (_with(data_offsets=[24, 0]), "the shape of a does not fit its bytes"),
    "three offsets": (_with(data_offsets=[0, 24, 24]), "the shape of a is impossible"),
    "overlap": (_with(shape=[2], data_offsets=[24, 32]), "overlap, or leave a gap"),
    "gap": (_with(shape=[5], data_offsets=[4, 24]), "overlap, or leave a gap"),
    "8-bit floats": (_with(dtype="F8_E4M3"), "holds a in the precision F8_E4M3"),
    "no such type": (_with(dtype=["F32"]), "holds a in the precision ['F32']"),
    "entry of text": (_file(TWO | {"c": "text"}), "holds c in the precision None"),
    "a long name": (_file(TWO | {"c" * 600: TWO["b"]}), "name of a tensor has 600 characters"),
    "too many tensors": (
        _file({str(i): {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}
               for i in range(20_001)}, b""),
        "it lists 20001 tensors",
    ),
    "a name twice": (_file(b'{"a":{},"a":{}}'), "its header is not valid JSON"),
    "deep": (_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not valid JSON"),
    "deep metadata": (_file(b'{"__metadata__":{"a":' + b"[" * 50_000), "not valid JSON"),
    "metadata of numbers": (_file(TWO | {"__metadata__": {"a": 1}}), "not a table of texts"),
    "metadata of a list": (_file(TWO | {"__metadata__": ["a"]}), "not a table of texts"),
    "not UTF-8": (_file(b'{"\xff": 1}'), "its header is not valid JSON"),
    "cut JSON": (_file(b'{"a": '), "its header is not valid JSON"),
    "cut numbers": (_file(TWO, bytes(31)), "it holds 31 bytes of numbers in place of 32"),
    "more numbers": (_file(TWO, bytes(33)), "it holds 33 bytes of numbers in place of 32"),
    "header past the end": (_file(TWO, length=1 << 40), "it ends within its header"),
    "length past 63 bits": (_file(TWO, length=(1 << 64) - 1), "it ends within its header"),
    "header too large": (
        _file(b"{" + b" " * (17 << 20), b""), "a header of 17 MB, which no model needs"
    ),
    "empty": (b"", "is empty"),
    "seven bytes": (b"\x01" * 7, "is damaged or not a safetensors file"),
    "zeros": (bytes(4096), "nothing but one repeated byte"),
    "web page": (b"<!DOCTYPE html><html>", "is a web page, not a model"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "only a Git LFS pointer"),
    "zip": (b"PK\x03\x04" + bytes(60), "is a PyTorch file or another zip; give it a name in .pth"),
    "something else": (b"something else entirely", "is damaged or not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use", [read_tensors, lambda path: read_subject(str(path))])
def test_a_header_that_lies(case: str, use: Callable[[Path], Any], tmp_path: Path) -> None:
    content, words = CASES[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        use(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert ";" in message  # a cure


def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": mx.zeros(1)})

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(mx, "load", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\); check its"):
        read_tensors(path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\); check its"):
        read_header(path)


def test_what_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "none": mx.zeros((0, 5)),
        "scalar": mx.array(3),
        "half": mx.ones((2, 2), mx.bfloat16),
        "count": mx.array([1], mx.uint64),
        "é": mx.array([True]),
    }
    write_tensors(path, tensors, {"info": "x"})
    assert set(read_header(path).names) == set(tensors)
    found = read_tensors(path)
    assert found.metadata == {"info": "x"}
    assert all(mx.array_equal(found.tensors[name], tensors[name]) for name in tensors)
    path.write_bytes(_file({}, b""))
    assert read_tensors(path).tensors == {}


def test_a_novel_in_the_metadata_is_shown_in_part(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    file = base.read_generator()
    state = dict(file.tensors)
    info = "once upon a time " * 300_000
    write_voice(tmp_path / "me.safetensors", state, file.config, info=info, name="me")
    _, net, text = look_at(tmp_path / "me.safetensors")
    assert net["trained"]["info"] == info
    assert "characters more" in text
    assert len(text) < 20_000


def test_a_configuration_nested_without_end_is_told_of(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tensors = dict(base.read_generator().tensors)
    deep = '{"model":' + "[" * 100_000 + "]" * 100_000 + "}"
    write_tensors(tmp_path / "x.safetensors", tensors, {"config": deep, "info": "9" * 5000})
    facts, net, _ = look_at(tmp_path / "x.safetensors")
    assert "the configuration in its metadata is damaged (is nested too deep" in facts["faults"][0]
    assert net["version"]["version"] == "v2"
