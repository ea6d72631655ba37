"""Which version GPT-SoVITS itself takes a voice for, by the rules of its own loader.

It guesses before it reads, from the first bytes and the size; once the tensors are read, the
phoneme table decides between v1 and v2, but never for or against a Pro model.

Source: GPT-SoVITS `process_ckpt.py` (`get_sovits_version_from_path_fast`, `head2version`) and
`inference_webui.py` (`change_sovits_weights`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mlx_vits.checkpoints.upstream import V2_LEAST_BYTES
from mlx_vits.errors import CheckpointError

FIRST_BYTES = 8192  # what the checksum covers
# MD5 of the first bytes of the published files. That of v1 is listed as v2, upstream's own slip.
_CHECKSUMS = {
    "dc3c97e17592963677a4a1681f30c653": ("s2G488k.pth", "v2"),
    "43797be674a37c1c83ee81081941ed0f": ("s2Gv3.pth", "v3"),
    "6642b37f3dbb1f76882b69937c95a5f3": ("s2G2333K.pth", "v2"),
    "4f26b9476d0c5033e04162c486074374": ("s2Gv4.pth", "v4"),
    "c7e9fce2223f3db685cdfa1e6368728a": ("s2Gv2Pro.pth", "v2Pro"),
    "66b313e39455b57ab1b0bc0b239c9d0a": ("s2Gv2ProPlus.pth", "v2ProPlus"),
}
CODE_VERSIONS = {
    "00": "v1",
    "01": "v2",
    "02": "v3",
    "03": "v3",
    "04": "v4",
    "05": "v2Pro",
    "06": "v2ProPlus",
}
_V1_BELOW_KIB = V2_LEAST_BYTES // 1024
_V2_BELOW_MIB = 700
_V1_ROWS = 322  # of the phoneme table

By = Literal["checksum", "version code", "size"]


class Guess(NamedTuple):
    """The first guess.

    Attributes:
        model: the version.
        by: which rule decided.
        because: that rule in words.
    """

    model: str
    by: By
    because: str


@dataclass(frozen=True)
class UpstreamView:
    """What becomes of a voice in GPT-SoVITS.

    Attributes:
        guess: the version it is first taken for.
        by: which rule decided that.
        opens_as: the version of the model that is built in the end.
        fits: whether that model is the one that the file holds.
        words: all of it in a sentence without subject.
    """

    guess: str
    by: By
    opens_as: str
    fits: bool
    words: str


def guess_version(head: bytes, size_bytes: int) -> Guess:
    """The first guess, from a file's first `FIRST_BYTES` bytes and its size."""
    digest = hashlib.md5(head[:FIRST_BYTES], usedforsecurity=False).hexdigest()
    if digest in _CHECKSUMS:
        name, model = _CHECKSUMS[digest]
        return Guess(model, "checksum", f"its first bytes, those of {name}")
    if head[:2] != b"PK":
        code = head[:2].decode("latin1")
        model = CODE_VERSIONS.get(code, "unknown")
        return Guess(model, "version code", f"the version code {code}")
    if size_bytes < _V1_BELOW_KIB * 1024:
        return Guess("v1", "size", f"its size (below {_V1_BELOW_KIB:,} KiB)")
    if size_bytes < _V2_BELOW_MIB * 1024**2:
        return Guess("v2", "size", f"its size ({_V1_BELOW_KIB:,} KiB or more)")
    return Guess("v3", "size", f"its size ({_V2_BELOW_MIB} MiB or more)")


def opened_as(guess: str, text_rows: int) -> str:
    """The version of the model that is built, once the rows of the phoneme table are known."""
    if guess in ("v3", "v4", "unknown") or "Pro" in guess:
        return guess
    return "v1" if text_rows == _V1_ROWS else "v2"


def judge(head: bytes, size_bytes: int, *, version: str, text_rows: int) -> UpstreamView:
    """What becomes of a voice.

    Args:
        head: its first `FIRST_BYTES` bytes.
        size_bytes: of the file.
        version: what its tensors are.
        text_rows: of its phoneme table.
    """
    guess = guess_version(head, size_bytes)
    opens = opened_as(guess.model, text_rows)
    words = f"takes it for {guess.model} by {guess.because}"
    if opens != guess.model:
        words += f", then for {opens} by its phoneme table ({text_rows} rows)"
    is_pro = "Pro" in version
    # Both Pro models are built alike: their sizes come from the file's configuration.
    fits = opens == version or (is_pro and "Pro" in opens)
    if fits:
        return UpstreamView(guess.model, guess.by, opens, True, words)
    if opens in ("v3", "v4", "unknown"):
        words += f", and cannot open it, because it is {version}"
    elif is_pro:
        words += (
            f", and fails when it is to speak: {version} is only known by its version code, which "
            "`mlx-vits export` writes"
        )
    else:
        words += f", and speaks with random layers, which {opens} has and {version} has not"
    return UpstreamView(guess.model, guess.by, opens, False, words)


def judge_file(path: Path, *, version: str, text_rows: int) -> UpstreamView:
    """`judge` for a file on disk.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(FIRST_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    return judge(head, size, version=version, text_rows=text_rows)
