"""Multilingual texts: split by script, each part read by its own front end.

The codes are those of GPT-SoVITS (`TTS_infer_pack/TextPreprocessor.py`):

| code | Latin letters | everything else |
| --- | --- | --- |
| `all_zh`, `all_ja`, `all_ko`, `all_yue` | English | that language |
| `zh`, `ja`, `ko`, `yue` given to `clean_mixed` | English | that language |
| `en` | English | English |
| `auto`, `auto_yue` | English | kana Japanese, Hangul Korean, characters Chinese or Japanese |

Upstream uses two language identification models that no package ships complete; here the script
decides, and for Chinese characters, whether the sentence has kana. A character that Japanese does
not use, or a word that only Chinese has, makes its run Chinese.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.text.chinese_marks import MARKS, is_silent
from mlx_vits.text.cleaner import CleanText, clean_text, resolve_language
from mlx_vits.text.lexicon import NO_WORDS, Lexicon

_LATIN = "A-Za-z\u00c0-\u024f\uff21-\uff3a\uff41-\uff5a"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f"
_HAN = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
# Digits attached to a word, or after it without a unit, belong to the word: "T60", "iPhone 15",
# "3D".
_WORD = rf"[0-9]*[{_LATIN}](?:['’&.@_-]?[{_LATIN}0-9])*"
_ITS_NUMBER = rf"(?: [0-9]+(?![0-9.,:%/{_HAN}{_HANGUL}]))?"
_TOKEN = re.compile(
    rf"(?P<en>{_WORD}{_ITS_NUMBER})|(?P<ja>[{_KANA}]+)|(?P<han>[{_HAN}]+)|(?P<ko>[{_HANGUL}]+)"
    r"|(?P<number>[0-9]+)|(?P<opening>[「『《〈（(【〔“‘\[])|(?P<other>.)",
    re.DOTALL,
)
_SCRIPTS = ("en", "ja", "han", "ko")
_SENTENCE_END = re.compile(r"(?<=[。！？!?\n])")
# Chinese words and characters that Japanese has the characters for but does not use.
_CHINESE_ONLY = re.compile(
    "[你您們嗎呢吧啊哪她很沒]|什麼|怎麼|這[個是麼裡樣些種]|(?<![国社])是(?![非正認々])"
    "|我们|一个|喜[欢歡]"
)


class Part(NamedTuple):
    """A piece of a text and the code of its language."""

    language: str
    text: str


def clean_mixed(
    text: str, language: str, version: str = "v2", lexicon: Lexicon = NO_WORDS
) -> CleanText:
    """Convert each part of a text to phonemes and join them, as GPT-SoVITS's inference does.

    `word2ph` is None if any part has none.

    Args:
        text: as for `clean_text`.
        language: a code of the table above.
        version, lexicon: as for `clean_text`.

    Raises:
        DataError: no part can be spoken, or the version lacks a language of the text.
        UserError: a language needs packages that are not installed.
    """
    cleaned: list[CleanText] = []
    unread: list[str] = []
    failure: DataError | None = None
    for part in split_languages(text, language, version):
        try:
            cleaned.append(clean_text(part.text, part.language, version, lexicon))
        except DataError as error:  # nothing to speak in this part; others may have
            failure = error
            unread += [c for c in part.text if not is_silent(c) and c not in MARKS]
    if not cleaned:
        raise failure or DataError("The transcript is empty; write what is said in the recording.")
    counts = [part.word2ph for part in cleaned]
    return CleanText(
        [phoneme for part in cleaned for phoneme in part.phonemes],
        None if None in counts else [n for count in counts for n in count or ()],
        "".join(part.normalized for part in cleaned),
        (*(word for part in cleaned for word in part.unknown), *unread),
        tuple(word for part in cleaned for word in part.guessed),
    )


def split_languages(text: str, language: str, version: str = "v2") -> list[Part]:
    """Split a text into parts of one language each; joined they are the text.

    Args:
        text: any text.
        language: a code of the table above.
        version: in v1, which has no Korean, Hangul joins its neighbours.
    """
    code = resolve_language(language, version)
    if code == "en":
        return [Part("en", text)]
    base = code.removeprefix("all_")
    if base.startswith("auto"):
        default, fallback = "", "yue" if base == "auto_yue" else "zh"
        sentences = [s for s in _SENTENCE_END.split(text) if s]
        pieces = [piece for s in sentences for piece in _tell_apart(s, fallback, version)]
    else:
        default = fallback = base
        pieces = [
            _Piece(kind, "en" if kind == "en" else base if kind in _SCRIPTS else "", written)
            for kind, written in _tokens(text)
        ]
    settled = _settle(pieces, default, fallback)
    return [
        Part(found, "".join(part.text for part in group))
        for found, group in groupby(settled, key=lambda part: part.language)
    ]


class _Piece(NamedTuple):
    """A token, and its language if its script determines it."""

    kind: str
    language: str
    text: str


def _tokens(text: str) -> list[tuple[str, str]]:
    return [(str(match.lastgroup), match[0]) for match in _TOKEN.finditer(text)]


def _tell_apart(sentence: str, chinese: str, version: str) -> list[_Piece]:
    """Split a sentence into pieces, with the language where the script determines it."""
    tokens = _tokens(sentence)
    has_kana = any(kind == "ja" for kind, _ in tokens)
    pieces = []
    for kind, written in tokens:
        if kind == "han":
            found = "ja" if has_kana and can_be_japanese(written) else chinese
        elif kind == "ko" and version == "v1":
            found = ""
        else:
            found = kind if kind in _SCRIPTS else ""
        pieces.append(_Piece(kind, found, written))
    return pieces


def can_be_japanese(characters: str) -> bool:
    """Whether Chinese characters may belong to a Japanese text."""
    if _CHINESE_ONLY.search(characters):
        return False
    try:
        characters.encode("euc_jis_2004")  # JIS X 0213, which lacks the simplified forms
    except UnicodeEncodeError:
        return False
    return True


def _settle(pieces: list[_Piece], default: str, fallback: str) -> list[Part]:
    """Assign numbers, marks and blanks to the language of their neighbours.

    A mark belongs to what it ends, or opens. A number between two words of the same language takes
    that language, otherwise the default, or the preceding one without a default.
    """
    following = [""]  # language of the next word, from the last piece to the first
    for piece in reversed(pieces):
        following.append(piece.language or following[-1])
    settled: list[Part] = []
    for piece, after in zip(pieces, following[:0:-1], strict=True):
        before = settled[-1].language if settled else ""
        if piece.language:
            found = piece.language
        elif piece.kind == "opening":
            found = after or before
        elif piece.kind == "number" and before != after:
            found = default or before or after
        else:
            found = before or after
        settled.append(Part(found or fallback, piece.text))
    return settled
