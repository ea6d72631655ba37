"""Recognise files that are not models by their first bytes, and say what to do."""

from __future__ import annotations

_ZIP = b"PK\x03\x04"
_OLD_TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_STARTS = {
    b"version https://git-lfs": (
        "is only a Git LFS pointer to the model; run `git lfs pull` or download the file itself"
    ),
    b"\x1f\x8b": "is compressed with gzip; unpack it with `gunzip` and give what comes out",
    b"Rar!": "is a RAR archive; unpack it and give the model within",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it and give the model within",
    b"GGUF": "is a GGUF model, which mlx_vits does not know; give a .pth or .safetensors voice",
    b"RIFF": "is a sound file; give the model of a voice",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_FEW_BYTES = 16
_LARGEST_HEADER = b"\0\0\0\0"  # upper half of the header's length, 0 below 4 GB


class Unusable(ValueError):
    """A file cannot be used; the message gives reason and cure, without the file's name."""


def damaged(what: str) -> str:
    """Return the message for a damaged file, as opposed to one of another kind."""
    return f"is damaged or cut short ({what}); copy or download it again"


def describe_start(head: bytes) -> str | None:
    """Describe a file and the cure, as a sentence without subject; None if unknown.

    Args:
        head: its first bytes, at least 64 if it is that long.
    """
    if not head:
        return "is empty; copy or download it again"
    for start, words in _STARTS.items():
        if head.startswith(start):
            return words
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return (
            "is a web page, not a model; download the file itself (on a hub, by its link "
            '"download")'
        )
    if _OLD_TORCH_MAGIC in head:
        return (
            "is in PyTorch's old non-zip format; open it once in PyTorch 1.6 or newer and save it "
            "again"
        )
    if head.startswith(_PICKLES):
        return (
            "is a bare Python pickle, which could run anything and is not opened; take the model "
            "in PyTorch's zip format or as safetensors"
        )
    if head.startswith(_ZIP):
        return "is a PyTorch file or another zip; give it a name in .pth, or unpack it"
    if head[4:8] == _LARGEST_HEADER and head[8:9] == b"{":
        return "is a safetensors file; give it a name in .safetensors"
    if head.lstrip()[:1] == b"{":
        return "is JSON text, not a model; give the .pth or .safetensors that it describes"
    if b"onnx" in head.lower() or (head.startswith(b"\x08") and b"pytorch" in head):
        return "is an ONNX model, which holds no weights by name; give the .pth that it comes from"
    if len(head) >= _FEW_BYTES and len(set(head)) == 1:
        return damaged("it holds nothing but one repeated byte")
    return None
