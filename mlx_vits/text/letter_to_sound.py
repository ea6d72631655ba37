"""Guessing how an English word that no dictionary has is pronounced.

A small convolutional network gives each letter the zero to two phonemes it stands for, with the
whole word in view ("knight" is "", N, AY1, "", "", T). Made by `scripts/make_english_lts.py` from
the CMU dictionary, stored in eight bits, and run with numpy: half a millisecond a word.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np

from mlx_vits.text.data_files import read_data

KERNEL = 5  # letters that one layer sees at once


class LetterToSound:
    """The network: letters of one word in, phonemes out. W letters, C channels.

    Args:
        arrays: what `scripts/make_english_lts.py` writes. Every matrix `name` is int8 with one
            float32 scale a row in `name.scale`; `labels` are the phonemes of a class, joined by
            spaces; `dilations` the distance between the letters that each layer sees.
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
        """ARPAbet phonemes for a word of the letters a to z, one of them with primary stress."""
        letters = np.frombuffer(word.encode("ascii"), dtype=np.uint8) - ord("a")
        hidden = self._arrays["embedding"][letters]  # (W, C)
        for i, dilation in enumerate(self._dilations):
            hidden = hidden + self._layer(hidden, f"layers.{i}", dilation)
        scores = self._linear(self._normalize(hidden, "norm"), "output")
        return [phoneme for label in self._choose(scores) for phoneme in self._labels[label]]

    def _choose(self, scores: np.ndarray) -> np.ndarray:
        """The class of each letter, scores (W, classes), given that one letter has the stress."""
        # Each letter's own best class would leave 1 word in 15 with two primary stresses or none.
        stressed = np.where(self._is_primary, scores, -np.inf)
        unstressed = np.where(self._is_primary, -np.inf, scores)
        chosen = unstressed.argmax(-1)
        place = (stressed.max(-1) - unstressed.max(-1)).argmax()
        chosen[place] = stressed[place].argmax()
        return chosen

    def _layer(self, x: np.ndarray, name: str, dilation: int) -> np.ndarray:
        """A gated convolution over normalized x; zeros stand for letters beyond the word."""
        reach = KERNEL // 2 * dilation
        padded = np.pad(self._normalize(x, f"{name}.norm"), ((reach, reach), (0, 0)))
        seen = [padded[k * dilation : k * dilation + len(x)] for k in range(KERNEL)]
        value, gate = np.split(self._linear(np.concatenate(seen, -1), f"{name}.conv"), 2, -1)
        return value / (1 + np.exp(-gate))

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        # Not `@`: for arrays this small, waking the threads of a BLAS takes longer than the sums.
        products = np.einsum("wi,oi->wo", x, self._arrays[f"{name}.weight"])
        return products + self._arrays[f"{name}.bias"]

    def _normalize(self, x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self._arrays[f"{name}.weight"] + self._arrays[f"{name}.bias"]


def letter_to_sound(content: bytes) -> LetterToSound:
    """The network in a file that `scripts/make_english_lts.py` wrote."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return LetterToSound(dict(arrays))


@cache
def english_letter_to_sound() -> LetterToSound:
    """The network this package ships, read on first use."""
    return letter_to_sound(read_data("english_lts.npz"))
