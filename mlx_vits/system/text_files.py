"""Text files as saved by editors and spreadsheets: UTF-8, or UTF-16 with a byte order mark."""

from __future__ import annotations

import codecs
import contextlib
import re
from pathlib import Path

from mlx_vits.errors import DataError
from mlx_vits.system.files import read_bytes

_DOUBLE_BYTE = {"gb2312": "GBK", "shift_jis": "Shift-JIS", "gbk": "GBK"}  # in the order to try


def read_text(path: Path, *, cure: str = "check the path") -> str:
    r"""Read a text file; line endings become `\n`.

    Args:
        cure: the end of the sentence for a file that cannot be read.

    Raises:
        DataError: the file cannot be read, or has another encoding. The sentence names the likely
            encoding, which is not used: a wrong guess would be trained on.
    """
    try:
        data = read_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); {cure}") from error
    return decode_text(data, path)


def decode_text(data: bytes, source: str | Path) -> str:
    r"""Decode a text; line endings become `\n`.

    Args:
        source: of the text, for messages.

    Raises:
        DataError: it has another encoding, see `read_text`.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: is not UTF-8 text{_likely(data)}; save it again as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(
            f"{source}: is not UTF-8 text but UTF-16 without its mark, or no text at all; save it "
            "again as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _likely(data: bytes) -> str:
    """Name the likely encoding of a file, for a message."""
    if not re.search(rb"[\x80-\xff]{2}", data):  # single accents between plain letters
        return " (probably Windows-1252)"
    for codec, name in _DOUBLE_BYTE.items():
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(codec)
            if name != "Shift-JIS" or re.search("[\u3041-\u30ff]", text):
                return f" (probably {name})"
    return ""
