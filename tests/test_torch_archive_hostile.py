"""Hostile and broken PyTorch files: one sentence each, nothing run, nothing blown up."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_vits.checkpoints.torch_archive import (
    read_torch_archive,
    read_version_code,
    write_torch_archive,
)
from mlx_vits.errors import CheckpointError
from tests.support.hostile_pickles import (
    CANARY,
    HPARAMS,
    MISUSED,
    NAMED,
    short,
    storage,
    tensor,
    text,
)

GOLDEN = Path(__file__).parent / "goldens/sovits_v2/golden_v2_e8_s64.pth"


def split_zip(whole: bytes) -> tuple[bytes, bytearray]:
    """A zip's entries and its directory, without the 22 bytes that end it."""
    (start,) = struct.unpack("<I", whole[-6:-2])
    return whole[:start], bytearray(whole[start:-22])


@cache
def golden_pickle() -> bytes:
    with zipfile.ZipFile(GOLDEN) as archive:
        return archive.read(archive.namelist()[0])


@cache
def golden_without_pickle() -> tuple[bytes, bytearray]:
    """Entries and directory of the golden voice, with six halves as its storage "0"."""
    new = io.BytesIO()
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            if name.endswith("/data/0"):
                archive.writestr(name, np.arange(6, dtype=np.float16).tobytes())
            elif not name.endswith("/data.pkl"):
                archive.writestr(name, old.read(name))
    return split_zip(new.getvalue())


def write_small(path: Path, pickled: bytes, **options: Any) -> None:
    """An archive of a pickle and one storage of six halves, "0"."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("any folder/data.pkl", pickled)
        archive.writestr("any folder/data/0", np.arange(6, dtype=np.float16).tobytes())


def write_in_voice(path: Path, pickled: bytes) -> None:
    """The golden voice with another pickle; made of two zips, as writing 600 entries is slow."""
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        archive.writestr("1795358022.5328443/data.pkl", pickled)
    entries, directory = golden_without_pickle()
    last, last_directory = split_zip(new.getvalue())
    struct.pack_into("<I", last_directory, 42, len(entries))
    directory = directory + last_directory
    count, start = directory.count(b"PK\x01\x02"), len(entries) + len(last)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(entries + last + directory + end)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, where no canary may appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / CANARY).exists()


def read_error(path: Path) -> str:
    """The one sentence of a refusal, which did not take much memory."""
    before = peak_bytes()
    with pytest.raises(CheckpointError) as caught:
        read_torch_archive(path)
    assert peak_bytes() - before < 400 << 20
    return check_sentence(path, caught.value)


def check_sentence(path: Path, error: CheckpointError) -> str:
    message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


def peak_bytes() -> int:
    unit = 1024 if os.uname().sysname == "Linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_the_builders_of_this_file_work(folder: Path) -> None:
    for write in (write_small, write_in_voice):
        write(folder / "x.pth", b"\x80\x02" + tensor() + b".")
        found = read_torch_archive(folder / "x.pth")
        assert np.array_equal(found, np.arange(6, dtype=np.float16).reshape(2, 3))


@pytest.mark.parametrize("write", [write_small, write_in_voice])
@pytest.mark.parametrize("full_name", NAMED)
def test_names_are_refused(folder: Path, full_name: str, write: Any) -> None:
    write(folder / "x.pth", NAMED[full_name])
    assert f"asks for {full_name}, " in read_error(folder / "x.pth")


@pytest.mark.parametrize("write", [write_small, write_in_voice])
@pytest.mark.parametrize("trick", MISUSED)
def test_tricks_are_refused(folder: Path, trick: str, write: Any) -> None:
    write(folder / "x.pth", MISUSED[trick])
    message = read_error(folder / "x.pth")
    assert "is damaged" in message


def test_the_hostile_pickles_are_dangerous_elsewhere(folder: Path) -> None:
    pickle.loads(NAMED["posix.system"])
    assert (folder / CANARY).exists()
    (folder / CANARY).unlink()


def test_extension_registry_is_not_consulted(folder: Path) -> None:
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        for trick in ("extension 1", "extension 2", "extension 4"):
            write_small(folder / "x.pth", MISUSED[trick])
            assert "EXT" in read_error(folder / "x.pth")
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def test_repeated_build_costs_nothing(folder: Path) -> None:
    state = b"}(" + b"".join(text(f"{i:05}") + b"N" for i in range(20_000)) + b"uq\x00"
    objects = (HPARAMS + b")\x81h\x00b") * 20_000
    write_small(folder / "x.pth", state + b"(" + objects + b"t\x86.")
    assert "nested without end" in read_error(folder / "x.pth")


def test_names_are_shown_harmlessly(folder: Path) -> None:
    write_small(folder / "x.pth", b"\x80\x04" + short("a\x1b[2J\n\u202eb") + short("c") + b"\x93.")
    assert "asks for a?[2J??b.c" in read_error(folder / "x.pth")
    write_small(folder / "x.pth", b"c" + b"m" * 100_000 + b"\nn\n.")
    read_error(folder / "x.pth")


def test_many_copies_of_one_storage(folder: Path) -> None:
    """A pickle of 1 MB that asks for a terabyte in transposed copies."""
    count = b"J" + struct.pack("<i", 1 << 20)
    side = b"M" + struct.pack("<H", 1 << 10)
    block = tensor(side + side + b"\x86", b"K\x01" + side + b"\x86", block=storage(count=count))
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"(" + block + b"q\x00" + b"h\x00" * 200_000 + b"t.")
        archive.writestr("a/data/0", bytes(2 << 20))
    assert "unpacks to far more" in read_error(folder / "x.pth")


def test_zip_bombs(folder: Path) -> None:
    path = folder / "x.pth"
    size = 64 << 20
    block = storage("Byte", count=b"J" + struct.pack("<i", size))
    pickled = tensor(b"J" + struct.pack("<i", size) + b"\x85", b"K\x01\x85", block=block) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", bytes(size))
    assert path.stat().st_size < 1 << 17
    assert "unpacks to far more" in read_error(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N" * (17 << 20) + b".")
    assert "is damaged" in read_error(path)


def test_modest_compression_is_read(folder: Path) -> None:
    write_small(folder / "x.pth", tensor() + b".", compression=zipfile.ZIP_DEFLATED)
    assert read_torch_archive(folder / "x.pth").shape == (2, 3)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(folder: Path, method: int) -> None:
    write_small(folder / "x.pth", tensor() + b".", compression=method)
    assert "compressed in an unknown way" in read_error(folder / "x.pth")


def test_directories(folder: Path) -> None:
    path = folder / "x.pth"
    good = tensor() + b"."
    for names, words in {
        ("a/data", "a/x"): "exactly one data.pkl",
        ("data.pkl",): "exactly one data.pkl",
        ("a/data.pkl", "b/data.pkl"): "exactly one data.pkl",
        ("a/data.pkl",): "numbers of a tensor are missing",
    }.items():
        with zipfile.ZipFile(path, "w") as archive:
            for entry in names:
                archive.writestr(entry, good)
        assert words in read_error(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/byteorder", "big")
        archive.writestr("a/data.pkl", good)
    assert "big-endian" in read_error(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", good)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/data.pkl", good)
    assert "two entries have one name" in read_error(path)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(80):
            info = zipfile.ZipInfo(f"a/{number}")
            info.comment = bytes(60_000)
            archive.writestr(info, b"")
    assert "its directory cannot be read" in read_error(path)


def patch_directory(path: Path, entry: str, field: int, form: str, value: int) -> None:
    """Overwrites a field of an entry in the directory at the end of a zip."""
    whole = bytearray(path.read_bytes())
    at = whole.rindex(entry.encode()) - 46
    assert whole[at : at + 4] == b"PK\x01\x02"
    struct.pack_into(form, whole, at + field, value)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("field", "form", "value"),
    [
        (8, "<H", 1),  # encrypted
        (8, "<H", 0x41),  # strongly encrypted
        (8, "<H", 0x20),  # patch data
        (6, "<H", 99),  # version needed
        (16, "<I", 12345),  # checksum
        (20, "<I", 2**32 - 1),  # compressed size: 64 bits, which are missing
        (20, "<I", 11),
        (24, "<I", 10**9),
        (42, "<I", 0),  # offset: overlaps the pickle
        (42, "<I", 1),
        (42, "<I", 10**6),
        (42, "<I", 2**32 - 1),
        (28, "<H", 3),  # length of the name
    ],
)
def test_lies_in_the_directory(folder: Path, field: int, form: str, value: int) -> None:
    write_small(folder / "x.pth", tensor() + b".")
    patch_directory(folder / "x.pth", "any folder/data/0", field, form, value)
    assert "is damaged" in read_error(folder / "x.pth")


def test_archive_inside_an_archive(folder: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a/data.pkl", NAMED["posix.system"])
    write_small(folder / "x.pth", inner.getvalue())
    read_error(folder / "x.pth")
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", tensor() + b".")
        archive.writestr("a/data/0", inner.getvalue())
    read_error(folder / "x.pth")


# Fuzzing: damaged files load or are refused in one sentence, and nothing else.


@cache
def fuzz_tree() -> dict[str, Any]:
    draw = np.random.default_rng(5)
    weight = {f"layer.{i}": draw.standard_normal((3, i)).astype("f2") for i in range(4)}
    weight |= {"long": np.arange(3), "flag": np.array([True])}
    config = {"model": {"rates": [10, 8], "version": "v2"}, "lr": 1e-4, "none": None}
    return {"weight": weight, "config": config, "iteration": 8, "betas": (0.8, 0.99)}


def voice_pickle() -> bytes:
    """The golden voice's own pickle with its first tensor and its whole configuration."""
    pickled = golden_pickle()
    start = pickled.index(text("config"))
    return b"\x80\x02}(" + text("weight") + tensor() + pickled[start:]


def attempt(path: Path) -> bool:
    """Reads a damaged file; whether it loaded."""
    try:
        read_version_code(path)
        read_torch_archive(path)
    except CheckpointError as error:
        check_sentence(path, error)
        return False
    return True


def damage(content: bytes, draw: np.random.Generator) -> bytes:
    """One to four random faults of the kinds that disks, networks and attackers make."""
    data = bytearray(content)
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


def fuzz(folder: Path, cases: int, seed: int) -> dict[str, int]:
    """Damages archives, and pickles inside whole archives; counts what loaded all the same."""
    path = folder / "x.pth"
    write_torch_archive(path, fuzz_tree(), version_code="05")
    archive = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(b"PK" + archive[2:])) as opened:
        entries = {n: opened.read(n) for n in opened.namelist()}
    ours, theirs = entries.pop("archive/data.pkl"), voice_pickle()
    draw = np.random.default_rng(seed)
    loaded = {"archive": 0, "our pickle": 0, "voice pickle": 0}
    for case in range(cases):
        kind = list(loaded)[case % 3]
        if kind == "archive":
            path.write_bytes(damage(archive, draw))
        elif kind == "our pickle":
            with zipfile.ZipFile(path, "w") as opened:
                opened.writestr("archive/data.pkl", damage(ours, draw))
                for entry, content in entries.items():
                    opened.writestr(entry, content)
        else:
            write_small(path, damage(theirs, draw))
        loaded[kind] += attempt(path)
    return loaded


def test_fuzz_small_archives(folder: Path) -> None:
    before = peak_bytes()
    loaded = fuzz(folder, 600, seed=1)
    assert peak_bytes() - before < 200 << 20
    assert all(0 < count < 150 for count in loaded.values()), loaded


def test_fuzz_the_golden_voice(folder: Path) -> None:
    whole = GOLDEN.read_bytes()
    path = folder / "x.pth"
    draw = np.random.default_rng(2)
    for share in np.linspace(0, 1, 25, endpoint=False):
        path.write_bytes(whole[: int(share * len(whole))])
        assert not attempt(path)
    for at in draw.integers(0, len(whole), 25):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        attempt(path)


def test_every_truncation_of_a_small_archive(folder: Path) -> None:
    path = folder / "x.pth"
    write_torch_archive(path, {"weight": np.arange(6.0)})
    whole = path.read_bytes()
    for length in range(0, len(whole)):
        path.write_bytes(whole[:length])
        assert not attempt(path)


@pytest.mark.slow
def test_fuzz_at_length(folder: Path) -> None:
    before = peak_bytes()
    loaded = fuzz(folder, 30_000, seed=3)
    assert peak_bytes() - before < 400 << 20
    assert all(count < 8_000 for count in loaded.values()), loaded
    path = folder / "x.pth"
    write_torch_archive(path, {"weight": np.arange(6.0)})
    whole = path.read_bytes()
    for at in range(len(whole)):
        for value in (0x00, 0x01, 0x7F, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ value]) + whole[at + 1 :])
            attempt(path)
