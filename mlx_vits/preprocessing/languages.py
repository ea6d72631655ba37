"""Language tags of transcripts: GPT-SoVITS's own, and those that other tools write."""

from __future__ import annotations

import re

# Upstream's tags; it skips any other with a warning.
LANGUAGES = {
    "zh": "zh",
    "jp": "ja",
    "ja": "ja",
    "en": "en",
    "ko": "ko",
    "yue": "yue",
}
_NAMES = {
    "english": "en",
    "chinese": "zh",
    "mandarin": "zh",
    "cmn": "zh",
    "japanese": "ja",
    "korean": "ko",
    "kr": "ko",
    "cantonese": "yue",
}
_AMBIGUOUS = ("zh-hk", "zh-mo")  # Cantonese in Common Voice, Mandarin elsewhere


def find_language(tag: str) -> str | None:
    """Return upstream's code for a tag such as `EN`, `en-US` or `english`; None if unknown."""
    tag = tag.strip().lower().replace("_", "-")
    # With a region or a script, as in `en-US`.
    if tag not in _AMBIGUOUS and re.fullmatch(r"[a-z]{2,3}-[a-z]{2,4}(-[a-z]{2})?", tag):
        tag = tag.partition("-")[0]
    return LANGUAGES.get(tag) or _NAMES.get(tag)


def guess_language(text: str) -> str:
    """Guess upstream's code from the script of a text; Latin script counts as English."""
    if re.search("[\u3041-\u30ff]", text):
        return "ja"
    if re.search("[\uac00-\ud7a3]", text):
        return "ko"
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"
