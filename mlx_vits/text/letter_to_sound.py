"""Predict the pronunciation of English words that are in no dictionary.

A small convolutional network maps each letter, in the context of the whole word, to the zero to two
phonemes it stands for ("knight" is "", N, AY1, "", "", T). Trained by `scripts/make_english_lts.py`
on the CMU dictionary, quantised to 8 bits, run in numpy: half a millisecond a word.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np

from mlx_vits.text.data_files import read_data

KERNEL = 5  # letters


class LetterToSound:
    """The network: letters of a word to phonemes. Axes: W letters, C channels.

    Args:
        arrays: from `scripts/make_english_lts.py`. Each matrix `name` is int8 with a float32 scale
            per row in `name.scale`; `labels` holds the phonemes of each class, joined by spaces;
            `dilations` the dilation of each layer.
    """

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays = {
            name: value * arrays[f"{name}.scale"][:, None] if value.dtype == np.int8 else value
            for name, value in arrays.items()
        }
        self._labels = [str(label).split() for label in arrays["labels"]]
        self._is_primary = np.array(["1" in label for label in arrays["labels"]])
        self._dilations = [int(d) for d in arrays["dilations"]]

    def pronounce(self, word: str) -> list[str]:
        """Return ARPAbet phonemes of a word in a-z, exactly one with primary stress."""
        letters = np.frombuffer(word.encode("ascii"), dtype=np.uint8) - ord("a")
        hidden = self._arrays["embedding"][letters]  # (W, C)
        for i, dilation in enumerate(self._dilations):
            hidden = hidden + self._layer(hidden, f"layers.{i}", dilation)
        scores = self._linear(self._normalize(hidden, "norm"), "output")
        return [phoneme for label in self._choose(scores) for phoneme in self._labels[label]]

    def _choose(self, scores: np.ndarray) -> np.ndarray:
        """Choose a class per letter from `(W, classes)`, exactly one with primary stress."""
        # A plain argmax would give 1 word in 15 two primary stresses or none.
        stressed = np.where(self._is_primary, scores, -np.inf)
        unstressed = np.where(self._is_primary, -np.inf, scores)
        chosen = unstressed.argmax(-1)
        place = (stressed.max(-1) - unstressed.max(-1)).argmax()
        chosen[place] = stressed[place].argmax()
        return chosen

    def _layer(self, x: np.ndarray, name: str, dilation: int) -> np.ndarray:
        """Apply a pre-normalised gated convolution, zero-padded."""
        pad = KERNEL // 2 * dilation
        padded = np.pad(self._normalize(x, f"{name}.norm"), ((pad, pad), (0, 0)))
        seen = [padded[k * dilation : k * dilation + len(x)] for k in range(KERNEL)]
        value, gate = np.split(self._linear(np.concatenate(seen, -1), f"{name}.conv"), 2, -1)
        return value / (1 + np.exp(-gate))

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        # Not `@`: for arrays this small, waking a BLAS's threads takes longer than the product.
        products = np.einsum("wi,oi->wo", x, self._arrays[f"{name}.weight"])
        return products + self._arrays[f"{name}.bias"]

    def _normalize(self, x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self._arrays[f"{name}.weight"] + self._arrays[f"{name}.bias"]


def letter_to_sound(content: bytes) -> LetterToSound:
    """Load a network that `scripts/make_english_lts.py` wrote."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return LetterToSound(dict(arrays))


@cache
def english_letter_to_sound() -> LetterToSound:
    """Return the network shipped with this package, loaded on first use."""
    return letter_to_sound(read_data("english_lts.npz"))
