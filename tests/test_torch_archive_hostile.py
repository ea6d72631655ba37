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

from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.errors import CheckpointError
from tests.support.hostile_pickles import (
    CANARY,
    HPARAMS,
    MISUSED,
    NAMED,
    name,
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


def test_every_truncation_of_a_small_archive(folder: Path) -> None:
    path = folder / "x.pth"
    write_torch_archive(path, {"weight": np.arange(6.0)})
    whole = path.read_bytes()
    for length in range(0, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_torch_archive(path)
        check_sentence(path, caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 0.97, 0.99, 0.9999])
def test_truncations_of_the_golden_voice(folder: Path, share: float) -> None:
    whole = GOLDEN.read_bytes()
    (folder / "x.pth").write_bytes(whole[: int(share * len(whole))])
    read_error(folder / "x.pth")


def resume_file(optimizer: bytes) -> bytes:
    """The pickle of a `G_*.pth` with that in the place of its optimizer's state."""
    state = text("model") + b"}" + text("a") + tensor() + b"s"
    return (
        b"\x80\x02}(" + state + text("iteration") + b"K\x08" + text("optimizer") + optimizer + b"u."
    )


@pytest.mark.parametrize("full_name", ["posix.system", "torch.storage._load_from_bytes"])
@pytest.mark.parametrize("code", [b"PK", b"05", b"06"])
def test_a_hostile_name_deep_inside_a_resume_file(
    folder: Path, full_name: str, code: bytes
) -> None:
    path, hostile = folder / "G_8.pth", NAMED[full_name][:-1]
    for place in (b"}K\x00%bs", b"](%be", name("collections.OrderedDict") + b")R}K\x00%bsb"):
        write_small(path, resume_file(place % hostile))
        path.write_bytes(code + path.read_bytes()[2:])
        assert f"asks for {full_name}, " in read_error(path)
    write_small(path, resume_file(b"}K\x00" + tensor() + b"s"))
    assert read_torch_archive(path)["optimizer"][0].shape == (2, 3)


def test_views_that_overlap_are_read_as_they_are(folder: Path) -> None:
    windows = (
        tensor() + tensor(b"K\x02K\x03\x86", b"K\x01K\x01\x86") + tensor(b"K\x04\x85", b"K\x00\x85")
    )
    write_small(folder / "x.pth", b"(" + windows + b"t.")
    whole, sliding, repeated = read_torch_archive(folder / "x.pth")
    assert whole.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert sliding.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert repeated.tolist() == [0] * 4
    sliding[0, 1] = 9  # a copy: no other tensor sees it, nor does its own other row
    assert sliding[1, 0] == 1
    assert whole[0, 1] == 1


def test_bfloat16_is_held_to_its_length(folder: Path) -> None:
    for count, is_good in ((b"K\x06", True), (b"K\x03", False), (b"K\x07", False)):
        block = storage("BFloat16", count=count)
        write_small(folder / "x.pth", tensor(b"K\x03\x85", b"K\x01\x85", block=block) + b".")
        if is_good:
            assert read_torch_archive(folder / "x.pth").dtype == np.float32
        else:
            assert "of another length" in read_error(folder / "x.pth")


def test_an_entry_that_begins_inside_another(folder: Path) -> None:
    """Not by the directory, but by the length that its own header gives for what precedes it."""
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(12))
        archive.writestr("a/data/1", bytes(12))
        archive.writestr("a/data.pkl", tensor() + b".")
    whole = bytearray(path.read_bytes())
    struct.pack_into("<H", whole, whole.index(b"PK\x03\x04") + 28, 30 + 8 + 12)
    path.write_bytes(whole)
    try:
        found = read_torch_archive(path)  # the same zeros, as the checksum has shown
        assert not found.any()
    except CheckpointError as error:
        check_sentence(path, error)


def test_sizes_of_64_bits_that_lie(folder: Path) -> None:
    path = folder / "x.pth"
    for sizes in ((2**62, 2**62), (12, 2**63), (2**64 - 1, 12)):
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("a/data/0")
            archive.writestr(info, np.arange(6, dtype=np.float16).tobytes())
            archive.writestr("a/data.pkl", tensor() + b".")
            info.extra = struct.pack("<HH2Q", 1, 16, *sizes)
        whole = bytearray(path.read_bytes())
        at = whole.index(b"PK\x01\x02")
        struct.pack_into("<2I", whole, at + 20, 2**32 - 1, 2**32 - 1)
        path.write_bytes(whole)
        assert "is damaged" in read_error(path)
