"""Read and write PyTorch's zip files (`.pth`, `.pt`) without PyTorch or executing pickles.

A file is an uncompressed zip with one folder of any name: `data.pkl` describes the objects
(`torch_pickle.py`), `data/0`, `data/1`, ... hold the storages, `byteorder` their byte order.
GPT-SoVITS overwrites the first two bytes, `PK`, of some of its voices with two digits: the version
code, read by `read_version_code`.

Nothing that a file declares is trusted: sizes are checked against each other and the file before
memory is allocated, and checksums are verified.

Source: PyTorch's `torch/serialization.py` and `caffe2/serialize/inline_container.cc`; GPT-SoVITS
`process_ckpt.py`.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlx_vits.checkpoints.file_start import Unusable, damaged, describe_start
from mlx_vits.checkpoints.torch_names import (
    BFLOAT16_STORAGE,
    STORAGE_DTYPES,
    PickleFault,
    StorageRef,
    TensorRef,
    printable,
)
from mlx_vits.checkpoints.torch_pickle import MAX_PICKLE_BYTES, read_pickle
from mlx_vits.checkpoints.torch_pickle_writer import build_pickle
from mlx_vits.errors import CheckpointError
from mlx_vits.system.faults import unreadable
from mlx_vits.system.files import atomic_write

_LOCAL_HEADER_BYTES = 30
_DIRECTORY_ENTRY_BYTES = 46
_DIRECTORY_END_BYTES = 22
_ALIGNMENT_BYTES = 64
_UTF8_FLAG = 0x800
_CHUNK_BYTES = 1 << 20
_OWN_PAGES_BYTES = 1 << 20
# A full-size model has 50 kB; zipfile allocates about 15 times the directory's size.
_MAX_DIRECTORY_BYTES = 4 << 20
# Limit on memory relative to the file: room for widened bfloat16, copies of transposed tensors and
# mild compression, but not for a zip bomb.
_MAX_GROWTH = 8
_MODEL_ENDINGS = (".pth", ".safetensors", ".ckpt", ".pt", ".bin")
_SMALL_FILE_BYTES = 16 << 20
# Everything that zipfile raises on malformed input, which it does not document.
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
)


def _damaged(what: str) -> Unusable:
    return Unusable(damaged(what))


def _describe_zip(names: Iterable[str]) -> str:
    """Describe a zip that is not a PyTorch file, with the cure."""
    models = [name for name in names if name.lower().endswith(_MODEL_ENDINGS)]
    if models:
        return f"is a zip that holds {printable(models[0], 80)}; unpack it and give that file"
    return (
        "is a zip but not a PyTorch file, as it does not hold exactly one data.pkl; name a .pth "
        "that GPT-SoVITS or mlx_vits wrote"
    )


class _ZipView:
    """A model file presented to `zipfile`: it starts with `PK`, and large reads are refused."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, count: int = -1) -> bytes:
        # zipfile reads the directory at once, in the length that the file claims.
        if count > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        start = self._file.tell()
        data = self._file.read(count)
        if start >= 2:
            return data
        return b"PK"[start : start + len(data)] + data[2 - start :]


class _Archive:
    """An open PyTorch file."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        try:
            self._zip = zipfile.ZipFile(_ZipView(file))
        except _ZIP_FAULTS as error:
            raise _damaged("its directory cannot be read") from error
        self._allowance = _MAX_GROWTH * file_bytes + _SMALL_FILE_BYTES
        self._entries = self._check_entries()
        self._storages: dict[str, tuple[StorageRef, np.ndarray]] = {}
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unusable(_describe_zip(self._entries))
        self._root = pickles[0].removesuffix("data.pkl")

    def _check_entries(self) -> dict[str, zipfile.ZipInfo]:
        """Return the entries by name, checked to be inside the file and disjoint."""
        entries: dict[str, zipfile.ZipInfo] = {}
        end = 0
        for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
            if info.filename in entries:
                raise _damaged("two entries have one name")
            if info.header_offset < end:
                raise _damaged("entries overlap")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _damaged("an entry is compressed in an unknown way")
            if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                raise _damaged("an entry has two sizes")
            encoding = "utf-8" if info.flag_bits & _UTF8_FLAG else "cp437"
            name_bytes = len(info.orig_filename.encode(encoding))
            end = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + info.compress_size
            entries[info.filename] = info
        if end > self._zip.start_dir:
            raise _damaged("an entry reaches past the end")
        return entries

    def _spend(self, count: int) -> None:
        self._allowance -= count
        if self._allowance < 0:
            raise Unusable(
                "unpacks to far more than a model of its size holds; take the file from a source "
                "you trust"
            )

    def _read_into(self, name: str, target: np.ndarray) -> None:
        """Fill a flat uint8 array with an entry of exactly that length."""
        view = target.data
        done = 0
        try:
            with self._zip.open(self._entries[name]) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
        except _ZIP_FAULTS as error:
            raise _damaged("an entry cannot be read") from error
        if done != len(target):
            raise _damaged("an entry is too short")

    def _read_bytes(self, name: str, limit: int) -> bytes:
        count = self._entries[name].file_size
        if count > limit:
            raise _damaged("a description is too long")
        target = np.empty(count, np.uint8)
        self._read_into(name, target)
        return target.tobytes()

    def _read_storage(self, ref: StorageRef) -> np.ndarray:
        """Return a storage as a flat array, read once however many tensors share it."""
        if ref.key in self._storages:
            known, storage = self._storages[ref.key]
            if known != ref:
                raise _damaged("tensors disagree about what they share")
            return storage
        name = f"{self._root}data/{ref.key}"
        is_bfloat16 = ref.kind == BFLOAT16_STORAGE
        dtype: np.dtype[Any] = np.dtype("<u2") if is_bfloat16 else STORAGE_DTYPES[ref.kind]
        count = ref.numel * dtype.itemsize
        if name not in self._entries or self._entries[name].file_size != count:
            raise _damaged("the numbers of a tensor are missing or of another length")
        self._spend(3 * count if is_bfloat16 else count)
        raw = _room(count)
        self._read_into(name, raw)
        if is_bfloat16:
            storage = _widen_bfloat16(raw.view(dtype))
        elif dtype == np.bool_:
            storage = raw != 0  # numpy misbehaves on a bool that is neither 0 nor 1
        else:
            storage = raw.view(dtype)
        self._storages[ref.key] = ref, storage
        return storage

    def read_tensor(self, ref: TensorRef) -> np.ndarray:
        """Return a tensor in C order, as a view of its storage if possible, else a copy."""
        storage = self._read_storage(ref.storage)
        item = storage.itemsize
        if ref.is_contiguous:
            count = math.prod(ref.shape)
            return storage[ref.offset : ref.offset + count].reshape(ref.shape)
        window = np.ndarray(
            ref.shape,
            storage.dtype,
            buffer=storage.data,
            offset=ref.offset * item,
            strides=[stride * item for stride in ref.strides],
        )
        self._spend(window.nbytes)
        return window.copy(order="C")

    def read(self) -> Any:
        """Read the object tree."""
        order = f"{self._root}byteorder"
        if order in self._entries and self._read_bytes(order, 16) != b"little":
            raise Unusable(
                "was written on a big-endian machine; open it in PyTorch and save it on another"
            )
        pickled = self._read_bytes(f"{self._root}data.pkl", MAX_PICKLE_BYTES)
        return read_pickle(pickled, self.read_tensor)


def _room(count: int) -> np.ndarray:
    """Allocate a byte buffer; large ones as separate pages, returned to the system when freed.

    Memory freed on the heap stays with the process (see `_backend.py`), and casting a model tensor
    by tensor to fp32 would not fit into the holes.
    """
    if count < _OWN_PAGES_BYTES:
        return np.empty(count, np.uint8)
    return np.frombuffer(mmap.mmap(-1, count), np.uint8)


def _widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Convert bfloat16 bit patterns (uint16) to float32 exactly."""
    wide = bits.astype("<u4")
    np.left_shift(wide, 16, out=wide)
    return wide.view("<f4")


@contextmanager
def _open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; all errors in or with it become a `CheckpointError`."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path}: is a folder; name the .pth file inside it")
        if not stat.S_ISREG(mode):
            # Opening a pipe would block forever.
            raise CheckpointError(f"{path}: is not a file; name a .pth file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file; check the name") from error
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    except (Unusable, PickleFault) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_start(head: bytes) -> None:
    """Refuse a file that is not a zip, by its first bytes."""
    if head[2:4] == b"\x03\x04" and (head[:2] == b"PK" or _is_code(head)):
        return
    raise Unusable(
        describe_start(head)
        or "is not a PyTorch file; name a .pth that GPT-SoVITS or mlx_vits wrote"
    )


def _is_code(head: bytes) -> bool:
    return len(head) >= 4 and head[:2].isdigit() and head[2:4] == b"\x03\x04"


def read_version_code(path: str | os.PathLike[str]) -> str | None:
    """Read the two digits that GPT-SoVITS writes over the first two bytes of some voices.

    Args:
        path: a `.pth`.

    Returns:
        Two ASCII digits such as "05" (v2Pro) or "06" (v2ProPlus), known or not; None for any other
        file, PyTorch's or not.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    with _open_file(Path(path)) as file:
        head = file.read(4)
    return head[:2].decode("ascii") if _is_code(head) else None


def read_torch_archive(path: str | os.PathLike[str]) -> Any:
    """Read the contents of a PyTorch zip file, with or without a version code.

    Args:
        path: file written by `torch.save`, GPT-SoVITS or `write_torch_archive`.

    Returns:
        The object tree, of dict, list, tuple, str, int, float, bool, None, bytes and numpy
        arrays. `OrderedDict` and upstream's `utils.HParams` become dict. Tensors and parameters
        become arrays in C order and PyTorch's axes, of float16/32/64, int8/16/32/64, uint8 or
        bool; bfloat16, which numpy lacks, is widened to float32 exactly. Arrays whose tensors
        shared a storage share memory.

    Raises:
        CheckpointError: the file is missing, damaged, in PyTorch's old format, not PyTorch's, or
            refers to a name (such as `posix.system`) that no model needs. Nothing that the file
            names is ever imported or run.
    """
    with _open_file(Path(path)) as file:
        _check_start(file.read(64))
        return _Archive(file, os.fstat(file.fileno()).st_size).read()


def _write_entry(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: Any) -> None:
    """Add an uncompressed entry whose data is aligned to 64 bytes."""
    info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 0  # zipfile's own default depends on the machine
    start = file.tell() + _LOCAL_HEADER_BYTES + len(info.filename) + 4
    gap = -start % _ALIGNMENT_BYTES
    info.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
    archive.writestr(info, data)
    info.extra = b""  # not repeated in the directory, which needs no alignment


def _pad(archive: zipfile.ZipFile, file: BinaryIO, least_bytes: int) -> None:
    """Add an entry that brings the finished file to `least_bytes`; PyTorch ignores it."""
    names = [info.filename for info in archive.infolist()]
    directory = sum(_DIRECTORY_ENTRY_BYTES + len(name) for name in names) + _DIRECTORY_END_BYTES
    missing = least_bytes - file.tell() - directory
    if missing > 0:
        name = ".padding"
        own = _LOCAL_HEADER_BYTES + _DIRECTORY_ENTRY_BYTES + 2 * len(f"archive/{name}") + 4
        _write_entry(archive, file, name, bytes(max(0, missing - own)))


def write_torch_archive(
    path: str | os.PathLike[str],
    obj: Any,
    *,
    version_code: str | None = None,
    pad_to: int | None = None,
) -> None:
    """Write an object tree that `torch.load(weights_only=True)` opens.

    The write is atomic and deterministic.

    Args:
        path: the file to write; its folder must exist.
        obj: a tree of dict (keys str or int), list, tuple, str, int, float, bool, None and numpy
            arrays of float16/32/64, int8/16/32/64, uint8 or bool.
        version_code: two digits to write over the first two bytes, as GPT-SoVITS does; PyTorch
            itself opens such a file only once those bytes are `PK` again.
        pad_to: minimum size of the file in bytes, from which GPT-SoVITS guesses a version.

    Raises:
        CheckpointError: the file cannot be written, for instance because the disk is full; an
            existing file is left unchanged.
        TypeError, ValueError: `obj` or `version_code` is not as described.
    """
    if version_code is not None and not _is_code(version_code.encode() + b"\x03\x04"):
        raise ValueError(f"a version code is two digits, not {version_code!r}")
    pickled, arrays = build_pickle(obj)
    with atomic_write(path, error=CheckpointError) as file:
        with zipfile.ZipFile(file, "w") as archive:
            _write_entry(archive, file, "data.pkl", pickled)
            _write_entry(archive, file, "byteorder", b"little")
            for number, array in enumerate(arrays):
                little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
                _write_entry(archive, file, f"data/{number}", little.reshape(-1).view(np.uint8))
            _write_entry(archive, file, "version", b"3\n")
            if pad_to is not None:
                _pad(archive, file, pad_to)
        if version_code is not None:
            file.seek(0)
            file.write(version_code.encode())
