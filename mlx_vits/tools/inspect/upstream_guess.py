"""Which version GPT-SoVITS itself takes a voice for, by the rules of its own loader.

It guesses before it reads, from the first bytes and the size; once the tensors are read, the
phoneme table decides between v1 and v2, but never for or against a Pro model.

Source: GPT-SoVITS `process_ckpt.py` (`get_sovits_version_from_path_fast`, `head2version`) and
`inference_webui.py` (`change_sovits_weights`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mlx_vits.checkpoints.contents import V1_SYMBOLS
from mlx_vits.checkpoints.upstream import CODE_VERSIONS, V2_LEAST_BYTES

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
_V1_BELOW_KIB = V2_LEAST_BYTES // 1024
_V2_BELOW_MIB = 700

By = Literal["checksum", "version code", "size"]


class _Guess(NamedTuple):
    version: str
    by: By  # the rule that decided
    because: str  # that rule in words


@dataclass(frozen=True)
class UpstreamView:
    """What becomes of a voice in GPT-SoVITS."""

    guess: str  # the version that it is first taken for
    by: By  # the rule that decided that
    opens_as: str  # the version of the model that is built in the end
    fits: bool  # whether that model is the one in the file
    words: str  # all of it, in a sentence without its subject


def _guess_version(head: bytes, size_bytes: int) -> _Guess:
    digest = hashlib.md5(head[:FIRST_BYTES], usedforsecurity=False).hexdigest()
    if digest in _CHECKSUMS:
        name, version = _CHECKSUMS[digest]
        return _Guess(version, "checksum", f"its first bytes, those of {name}")
    if head[:2] != b"PK":
        code = head[:2].decode("latin1")
        version = CODE_VERSIONS.get(code, "unknown")
        return _Guess(version, "version code", f"the version code {code}")
    if size_bytes < V2_LEAST_BYTES:
        return _Guess("v1", "size", f"its size (below {_V1_BELOW_KIB:,} KiB)")
    if size_bytes < _V2_BELOW_MIB * 1024**2:
        return _Guess("v2", "size", f"its size ({_V1_BELOW_KIB:,} KiB or more)")
    return _Guess("v3", "size", f"its size ({_V2_BELOW_MIB} MiB or more)")


def judge(head: bytes, size_bytes: int, *, version: str, text_rows: int) -> UpstreamView:
    """Return what becomes of a voice.

    Args:
        head: its first `FIRST_BYTES` bytes.
        size_bytes: of the file.
        version: what its tensors are.
        text_rows: of its phoneme table.
    """
    guess, by, because = _guess_version(head, size_bytes)
    words = f"takes it for {guess} by {because}"
    opens = guess
    if guess in ("v1", "v2"):
        opens = "v1" if text_rows == V1_SYMBOLS else "v2"
    if opens != guess:
        words += f", then for {opens} by its phoneme table ({text_rows} rows)"
    is_pro = "Pro" in version
    # Both Pro models are built alike: their sizes come from the file's configuration.
    fits = opens == version or (is_pro and "Pro" in opens)
    if fits:
        pass
    elif opens in ("v3", "v4", "unknown"):
        words += f", and cannot open it, because it is {version}"
    elif is_pro:
        words += (
            f", and fails when it is to speak: {version} is only known by its version code, which "
            "`mlx-vits export` writes"
        )
    else:
        words += f", and speaks with random layers, which {opens} has and {version} has not"
    return UpstreamView(guess, by, opens, fits, words)
