"""Check that the transcripts of a voice are in the language they are read as."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.text.cleaner import resolve_language
from mlx_vits.text.extras import LANGUAGE_NAMES
from mlx_vits.text.likely_language import is_unreadable, likely_language, other_language

# Share of words of a text read as English that are in no dictionary: 0.1 to 2 % in 18 English
# voices, 30 % on a page of invented names, 14 to 75 % in texts of twelve other languages.
_FOREIGN_SHARE = 0.08
_UNKNOWN_SHARE = 0.2
_NAMES_SHARE = 0.1
_PROBLEM_SHARE = 0.1  # of the clips
_MAX_NAMED = 3
_CODES = {name: code for code, name in LANGUAGE_NAMES.items()}


class ReadText(NamedTuple):
    """A transcript and how it was read.

    Attributes:
        name: of its clip.
        text: as written, or normalised.
        language: code, as for `clean_text`.
        guessed: number of words that are in no English dictionary.
    """

    name: str
    text: str
    language: str
    guessed: int


class Finding(NamedTuple):
    """A sentence, and whether it affects the quality of the voice."""

    level: Literal["problem", "note"]
    words: str


def check_language(text: str, language: str, version: str = "v2") -> None:
    """Check that a transcript is written in a script of its language.

    Raises:
        DataError: it is in another script, so its phonemes would not match the audio; or the
            language is not supported.
    """
    code = resolve_language(language, version)
    if is_unreadable(text, code):
        found = other_language(text, code)
        raise DataError(
            f"The transcript {text.strip()[:40]!r} looks like {found}, but is read as "
            f"{_name(code)}; {_cure(found)}."
        )


def judge_languages(texts: Sequence[ReadText]) -> list[Finding]:
    """Return findings on transcripts that do not look like the language they are read as.

    Raises:
        DataError: a language is not supported.
    """
    groups: dict[str, list[ReadText]] = {}
    for text in texts:
        groups.setdefault(resolve_language(text.language, "v2"), []).append(text)
    return [finding for code, group in groups.items() for finding in _judge(code, group)]


def _judge(code: str, texts: list[ReadText]) -> Iterable[Finding]:
    whole = "\n".join(text.text for text in texts)
    is_english = code == "en"
    guessed = sum(text.guessed for text in texts)
    share = guessed / max(1, _count_words(whole))
    words = f"{share:.0%} of the words ({guessed:,}) are in no English dictionary"
    found = other_language(whole, code)
    if found and (not is_english or share > _FOREIGN_SHARE):
        beside = f": {words}, so their sound is guessed" if is_english else ""
        yield Finding(
            "problem",
            f"The transcripts look like {found}, but are read as {_name(code)}{beside}; "
            f"{_cure(found)}.",
        )
        return
    if is_english and share > _UNKNOWN_SHARE and likely_language(whole) != "English":
        yield Finding(
            "problem",
            f"{words}, so their sound is guessed: the transcripts look like another language than "
            "English; say with --language which, or write them as they are said.",
        )
        return
    if is_english and share > _NAMES_SHARE:
        yield Finding(
            "note", f"{words}, so their sound is guessed: listen whether such names are right."
        )
    others = {
        text.name: found
        for text in texts
        if (found := other_language(text.text, code))
        and (not is_english or text.guessed > _FOREIGN_SHARE * _count_words(text.text))
    }
    if others:
        named = ", ".join(f"{name}: {found}" for name, found in list(others.items())[:_MAX_NAMED])
        more = f" and {len(others) - _MAX_NAMED} more" if len(others) > _MAX_NAMED else ""
        one = len(others) == 1
        yield Finding(
            "problem" if len(others) > _PROBLEM_SHARE * len(texts) else "note",
            f"{len(others)} {'transcript looks' if one else 'transcripts look'} like another "
            f"language than {_name(code)} ({named}{more}): state it in the list of transcripts, or "
            f"take the clip{'' if one else 's'} out.",
        )


def _count_words(text: str) -> int:
    return len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text))


def _name(code: str) -> str:
    return LANGUAGE_NAMES.get(code.removeprefix("all_"), f"{code!r}")


def _cure(found: str) -> str:
    code = _CODES.get(found)
    if code is not None:
        return f"if it is that, give --language {code}, or {code.upper()} in a .list"
    return "that is none of GPT-SoVITS's languages, and would teach the voice wrong sounds"
