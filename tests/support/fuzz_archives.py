"""Cases for the reader of PyTorch's zip files: bytes, pickles, directories, tensors."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlx_vits.checkpoints.torch_archive import (
    read_torch_archive,
    read_version_code,
    write_torch_archive,
)
from tests.support.fuzzing import Fault, Kind
from tests.support.hostile_pickles import HPARAMS, MISUSED, NAMED, name, storage, tensor, text

GOLDEN = Path(__file__).parents[1] / "goldens/sovits_v2/golden_v2_e8_s64.pth"
KINDS_OF_STORAGE = ("Half", "Float", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
ITEM_BYTES = dict(zip(KINDS_OF_STORAGE, (2, 4, 8, 8, 4, 2, 1, 1, 1), strict=True))


def read(path: Path) -> Any:
    read_version_code(path)
    return read_torch_archive(path)


# What is damaged: one small file of every form that GPT-SoVITS and PyTorch write.


def _trees() -> dict[str, Any]:
    draw = np.random.default_rng(5)
    weight = {f"layer.{i}": draw.standard_normal((3, i)).astype("f2") for i in range(4)}
    config = {"model": {"rates": [10, 8], "version": "v2"}, "lr": 1e-4, "none": None}
    moments = {
        i: {
            "step": np.array(3, "f4"),
            "exp_avg": draw.standard_normal((2, 2)).astype("f4"),
            "exp_avg_sq": draw.random((2, 2), "f4"),
        }
        for i in range(2)
    }
    group = {"lr": 1e-4, "betas": (0.8, 0.99), "eps": 1e-9, "foreach": None, "amsgrad": False}
    optimizer = {"state": moments, "param_groups": [group | {"params": [0]}, {"params": [1, 2]}]}
    others = {code: np.arange(3).astype(code) for code in ("f8", "i8", "i4", "i2", "i1", "u1", "?")}
    resume = {"iteration": 8, "optimizer": optimizer, "learning_rate": 1e-4}
    return {
        "export": {"weight": weight, "config": config, "info": "8epoch_64iteration"},
        "resume": {"model": {k: a.astype("f4") for k, a in weight.items()}} | resume,
        "others": {"weight": others, "numbers": [0, -1, 2**31, -(2**70)], "nested": [[(), {}]]},
    }


def zipped(entries: dict[str, bytes], code: bytes = b"PK", **options: Any) -> bytes:
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w", **options) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return code + new.getvalue()[2:]


@cache
def voice_pickle() -> bytes:
    """The golden voice's own pickle with its first tensor and its whole configuration."""
    with zipfile.ZipFile(GOLDEN) as archive:
        pickled = archive.read(archive.namelist()[0])
    return b"\x80\x02}(" + text("weight") + tensor() + pickled[pickled.index(text("config")) :]


@cache
def pickles() -> dict[str, dict[str, bytes]]:
    """Entries of each form, with the pickle as `a/data.pkl`."""
    found = {}
    for form, tree in _trees().items():
        path = Path(f"{form}.pth").absolute()
        write_torch_archive(path, tree)
        with zipfile.ZipFile(path) as archive:
            found[form] = {n.replace("archive/", "a/"): archive.read(n) for n in archive.namelist()}
        path.unlink()
    numbers = np.arange(6, dtype="f2").tobytes()
    found["voice"] = {"a/data.pkl": voice_pickle(), "a/data/0": numbers, "a/byteorder": b"little"}
    views = (
        tensor() + tensor(strides=b"K\x01K\x02\x86") + tensor(b"K\x02K\x02\x86", b"K\x01K\x02\x86")
    )
    brain = tensor(block=storage("BFloat16", key="1"))
    parameter = name("torch._utils._rebuild_parameter") + tensor() + b"\x88}\x87R"
    pickled = b"\x80\x02(" + views + brain + parameter + b"t."
    found["views"] = {"a/data.pkl": pickled, "a/data/0": numbers, "a/data/1": numbers}
    modern = b"\x80\x04\x95" + bytes(8) + b"}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94C\x02\x00\xffu."
    found["protocol 4"] = {"a/data.pkl": modern}
    return found


@cache
def archives() -> list[bytes]:
    """Each form as it is, with a version code, and compressed."""
    packed = {"compression": zipfile.ZIP_DEFLATED}
    return [
        zipped(entries, code, **options)
        for entries in pickles().values()
        for code, options in ((b"PK", {}), (b"05", {}), (b"06", {}), (b"PK", packed))
    ]


# Bytes: what disks, networks and attackers do.


def damage(content: bytes, draw: np.random.Generator) -> bytes:
    """One to four random faults, or a cut."""
    data = bytearray(content)
    if draw.integers(0, 12) == 0:
        return bytes(data[: int(draw.integers(0, len(data) + 1))])
    for _ in range(draw.integers(1, 5)):
        at = int(draw.integers(0, max(len(data), 1)))
        length = int(draw.integers(1, 9))
        kind = draw.integers(0, 6)
        if kind == 0:
            data[at : at + 1] = bytes([draw.integers(0, 256)])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << int(draw.integers(0, 8))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = draw.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 4:
            other = int(draw.integers(0, max(len(data), 1)))
            data[at : at + length] = data[other : other + length]
        else:
            extreme = [0, 0xFF, 0x7F, 0x80][int(draw.integers(0, 4))]
            data[at : at + 4] = bytes([extreme]) * 4
    return bytes(data)


def pick(draw: np.random.Generator, items: Any) -> Any:
    items = list(items)
    return items[int(draw.integers(0, len(items)))]


def archive_bytes(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    path.write_bytes(damage(pick(draw, archives()), draw))
    return read


def golden_bytes(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    path.write_bytes(damage(GOLDEN.read_bytes(), draw))
    return read


def pickle_bytes(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    entries = dict(pick(draw, pickles().values()))
    entries["a/data.pkl"] = damage(entries["a/data.pkl"], draw)
    path.write_bytes(zipped(entries))
    return read


# Pickles whose instructions are whole, in another order or with others among them.


def instructions(pickled: bytes) -> list[bytes]:
    ends = [at for _, _, at in pickletools.genops(pickled) if at is not None]
    return [pickled[a:b] for a, b in zip(ends, [*ends[1:], len(pickled)], strict=True)]


@cache
def instructions_of(form: str) -> list[bytes]:
    return instructions(pickles()[form]["a/data.pkl"])


@cache
def spare_parts() -> list[bytes]:
    """Instructions and short runs of them, accepted and not."""
    simple = [bytes([code]) for code in range(256)]
    numbers = [
        b"K\x00",
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"M\xff\xff",
        b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    ]
    memo = [b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"r\xff\xff\xff\xff", b"j\x00\x00\x00\x00"]
    calls = [
        HPARAMS + b")\x81",
        name("collections.OrderedDict") + b")R",
        storage(),
        tensor(),
        b"}b",
    ]
    hostile = [pickled[:-1] for pickled in NAMED.values()]
    misused = [pickled[:-1] for pickled in MISUSED.values() if len(pickled) < 300]
    return [*simple, *numbers, *memo, *calls, *calls, *hostile, *misused]


def pickle_instructions(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    form = pick(draw, pickles())
    parts = list(instructions_of(form))
    for _ in range(draw.integers(1, 5)):
        at, other = (int(i) for i in draw.integers(0, len(parts), 2))
        kind = draw.integers(0, 5)
        if kind == 0:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 1 and len(parts) > 1:
            del parts[at]
        elif kind == 2:
            parts.insert(at, parts[other])
        elif kind == 3:
            parts[at] = pick(draw, spare_parts())
        else:
            parts.insert(at, pick(draw, spare_parts()))
    path.write_bytes(zipped(pickles()[form] | {"a/data.pkl": b"".join(parts)}))
    return read


def pickle_from_parts(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    parts = [pick(draw, spare_parts()) for _ in range(draw.integers(1, 12))]
    opening, closing = pick(draw, ((b"", b""), (b"(", b"t"), (b"](", b"e"), (b"}(K\x01", b"u")))
    entries = pickles()["voice"] | {"a/data.pkl": opening + b"".join(parts) + closing + b"."}
    path.write_bytes(zipped(entries))
    return read


# The zip's own tables.

_LOCAL = (b"PK\x03\x04", {4: "H", 6: "H", 8: "H", 14: "I", 18: "I", 22: "I", 26: "H", 28: "H"})
_CENTRAL = (
    b"PK\x01\x02",
    {6: "H", 8: "H", 10: "H", 16: "I", 20: "I", 24: "I", 28: "H", 30: "H", 32: "H", 34: "H"}
    | {36: "H", 38: "I", 42: "I"},
)
_END = (b"PK\x05\x06", {4: "H", 6: "H", 8: "H", 10: "H", 12: "I", 16: "I", 20: "H"})
_EXTREMES = (0, 1, 2, 8, 0x20, 0x800, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def positions(content: bytes | bytearray, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 4)
    return found


def _zip64(draw: np.random.Generator) -> bytes:
    """The records that a file of more than 4 GiB ends with, wrong in every way."""
    numbers = [int(pick(draw, (0, 1, 300, 2**31, 2**62, 2**64 - 1))) for _ in range(5)]
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *numbers[:4])
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, numbers[4], 1)
    return pick(draw, (end, b"")) + locator


def directory(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    data = bytearray(pick(draw, archives()))
    data[:2] = b"PK"
    for _ in range(draw.integers(1, 4)):
        mark, fields = pick(draw, (_LOCAL, _CENTRAL, _CENTRAL, _END))
        at, (offset, form) = pick(draw, positions(data, mark)), pick(draw, fields.items())
        limit = 1 << 8 * struct.calcsize(form)
        (value,) = struct.unpack_from(f"<{form}", data, at + offset)
        near = value + int(draw.integers(-3, 4))
        wish = pick(draw, (near, pick(draw, _EXTREMES), int(draw.integers(0, len(data) + 9))))
        struct.pack_into(f"<{form}", data, at + offset, wish % limit)
    end = positions(data, b"PK\x05\x06")[-1]
    kind = draw.integers(0, 8)
    if kind == 0:
        data[end:end] = _zip64(draw)
    elif kind == 1:
        data += data[end:]  # a second end
    elif kind == 2:
        data += bytes(int(draw.integers(1, 70_000)))
    elif kind == 3:
        data[end:end] = data[positions(data, b"PK\x01\x02")[0] :]  # the directory once more
    elif kind == 4:
        at = positions(data, b"PK\x01\x02")[-1]
        extra = struct.pack("<HH", int(pick(draw, (1, 0x7075, 0x4246))), int(draw.integers(0, 40)))
        extra += draw.integers(0, 256, int(draw.integers(0, 40)), dtype=np.uint8).tobytes()
        length = at + 46 + struct.unpack_from("<H", data, at + 28)[0]
        data[length:length] = extra
        struct.pack_into("<H", data, at + 30, len(extra))
    path.write_bytes(pick(draw, (b"PK", b"PK", b"05")) + data[2:])
    return read


# Tensors whose description is a pickle as it should be, but says something absurd.


def _number(value: int) -> bytes:
    return b"\x8a\x0b" + value.to_bytes(11, "little", signed=True)


def described(draw: np.random.Generator) -> dict[str, Any]:
    """A tensor as a file may describe it; often one that fits, often one that does not."""
    kind, count = pick(draw, KINDS_OF_STORAGE), int(draw.integers(0, 25))
    axes = int(draw.integers(0, 5))
    shape = [int(n) for n in draw.integers(0 if draw.random() < 0.2 else 1, 5, axes)]
    strides = [int(n) for n in draw.integers(0, 7, axes)]
    if draw.random() < 0.5:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(axes)]
    found = {"kind": kind, "bytes": count * ITEM_BYTES[kind], "count": count, "offset": 0}
    found |= {"shape": shape, "strides": strides}
    if draw.random() < 0.3:
        found["offset"] = int(draw.integers(0, 5))
    if draw.random() < 0.3:
        absurd = int(pick(draw, (-1, 10, 2**31, 2**40, 2**40 + 1, 2**63, -(2**63), 2**64, 2**80)))
        part = pick(draw, ("bytes", "count", "offset", "shape", "strides"))
        if part == "bytes":
            found["bytes"] = int(draw.integers(0, 200))
        elif isinstance(found[part], list):
            found[part][:1] = [absurd]
        else:
            found[part] = absurd
    return found


def elements(case: dict[str, Any], numbers: np.ndarray) -> np.ndarray | None:
    """The tensor by its definition, one element at a time; None where a read would leave it."""
    shape, offset = case["shape"], case["offset"]
    if numbers.size != case["count"] or min([offset, *shape, *case["strides"]], default=0) < 0:
        return None
    if len(shape) != len(case["strides"]) or offset > numbers.size:
        return None
    if 0 in shape:
        return numbers[:0].reshape(shape)
    places = np.array(offset, dtype=object).reshape([1] * len(shape))
    for axis, stride in enumerate(case["strides"]):
        steps = np.arange(shape[axis]).astype(object) * stride
        places = np.asarray(
            places + steps.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        )
    # More elements than the storage holds are refused, and so is any place outside.
    if places.size and (max(places.ravel()) >= numbers.size or places.size > numbers.size):
        return None
    return numbers[places.astype(np.int64)]


def tensors(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    case = described(draw)
    content = draw.integers(0, 2, case["bytes"], dtype=np.uint8).tobytes()
    block = storage(case["kind"], count=_number(case["count"]))
    shape, strides = (b"(" + b"".join(map(_number, case[k])) + b"t" for k in ("shape", "strides"))
    pickled = tensor(shape, strides, _number(case["offset"]), block) + b"."
    path.write_bytes(zipped({"a/data.pkl": pickled, "a/data/0": content}))

    def read_and_compare(path: Path) -> Any:
        found = read_torch_archive(path)
        codes = ("f2", "f4", "f8", "i8", "i4", "i2", "i1", "u1", "?")
        dtype = np.dtype(dict(zip(KINDS_OF_STORAGE, codes, strict=True))[case["kind"]])
        expected = elements(case, np.frombuffer(content, dtype))
        if expected is None or found.dtype != dtype or found.shape != expected.shape:
            raise Fault(f"{case} gives {found!r:.200}, not {expected!r:.200}")
        if found.tobytes() != expected.tobytes():
            raise Fault(f"{case} gives other numbers")
        return found

    return read_and_compare


ARCHIVE_KINDS: dict[str, Kind] = {
    "archive bytes": archive_bytes,
    "golden bytes": golden_bytes,
    "pickle bytes": pickle_bytes,
    "pickle instructions": pickle_instructions,
    "pickle from parts": pickle_from_parts,
    "directory": directory,
    "tensors": tensors,
}
