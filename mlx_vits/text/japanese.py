"""Japanese front end: text to OpenJTalk's phonemes with pitch accents.

Output as in GPT-SoVITS's `text/japanese.py`: phonemes; "[" where the pitch rises and "]" where it
falls (from version v2 on; "UNK" in v1); "UNK" for accent phrase boundaries (upstream's "#", which
is in no version's symbols) and for quotes and brackets; "_" for a pause inserted by OpenJTalk.
Readings come from `pyopenjtalk-plus`, which includes its dictionary and has wheels for every
system. If upstream's `pyopenjtalk` is installed instead, which downloads a dictionary on first use,
it is used once that dictionary is present. The two agree in nearly all phonemes; `pyopenjtalk-plus`
finds fewer and longer accent phrases, closer to speech.

Differences from upstream: numbers with commas and points, times, dates, money, percentages,
telephone numbers and signs are read as people read them, where upstream splits them or gives "UNK";
Latin letters keep their case, by which OpenJTalk recognises names (iPhone is アイフォン, which
upstream spells out).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_vits.errors import DataError, UserError
from mlx_vits.system.installing import install_command
from mlx_vits.text.chinese_marks import MARKS, is_silent
from mlx_vits.text.cleaner import UNKNOWN, CleanText
from mlx_vits.text.extras import load_package
from mlx_vits.text.lexicon import NO_WORDS, Lexicon, Piece
from mlx_vits.text.symbols import symbols_for

_SPOKEN = "A-Za-z0-9々〆\u3041-\u3096\u309d\u309e\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_SPOKEN += "\uf900-\ufaff\U00020000-\U0003134f"
_MAX_PIECE_CHARS = 400  # characters; OpenJTalk fails on texts of several thousand
_PIECE = re.compile(
    rf"[{_SPOKEN}]{{1,{_MAX_PIECE_CHARS}}}(?:(?<=[0-9])[.][0-9]{{1,20}}[{_SPOKEN}]{{0,{_MAX_PIECE_CHARS}}})?"
    rf"|[^\W{_SPOKEN}]+|.|\n"
)
_MARK_OF = {
    **{"、": ",", "，": ",", "：": ",", ":": ",", "；": ",", ";": ",", "·": ",", "。": "."},
    **{"．": ".", "！": "!", "？": "?", "\n": ".", "⋯": "…", "‥": "…"},
    **dict.fromkeys("—―─–‐−-", "-"),
}
_SIGNS = {
    **{"%": "パーセント", "‰": "パーミル", "℃": "度", "°": "度", "&": "アンド", "@": "アット"},
    **{"+": "プラス", "×": "かける", "÷": "わる", "±": "プラスマイナス", "〒": "郵便番号"},
}
_MONEY = {"¥": "円", "$": "ドル", "€": "ユーロ", "£": "ポンド"}
_DIGIT_NAMES = ["ゼロ", "イチ", "ニー", "サン", "ヨン", "ゴー", "ロク", "ナナ", "ハチ", "キュー"]
_SCALE = "兆|億|万|千|百"
_LABEL = re.compile(
    r"-(?P<phone>[^+]*)\+.*/A:(?P<accent>[-0-9x]+)\+(?P<mora>[0-9x]+)\+(?P<left>[0-9x]+)/"
    r".*/F:(?P<moras>[0-9x]+)_"
)


def clean(text: str, version: str, lexicon: Lexicon = NO_WORDS) -> CleanText:
    """Implement `clean_text` for Japanese.

    Raises:
        DataError: the text has nothing that Japanese can read.
        UserError: the package of the extra `ja` is not installed.
    """
    normalized = normalize(text)
    phonemes: list[str] = []
    unknown: list[str] = []
    spoken = False
    for piece, given in _pieces(normalized, lexicon):
        if given:
            spoken = True
            phonemes += given
        elif re.match(f"[{_SPOKEN}]", piece):
            sounds = accented_phonemes(piece)
            spoken = spoken or bool(sounds)
            unknown += [] if sounds else [piece]
            phonemes += sounds or [UNKNOWN]
        elif piece in MARKS:
            phonemes.append(piece)
        elif piece != " ":
            unknown += [] if is_silent(piece) else [piece]
            phonemes.append(UNKNOWN)
    if not spoken:
        raise DataError(f"The transcript {text.strip()[:40]!r} has no word that Japanese can read.")
    known = frozenset(symbols_for(version))
    phonemes = [phoneme if phoneme in known else UNKNOWN for phoneme in phonemes]
    return CleanText(phonemes, None, normalized, tuple(unknown))


def _pieces(text: str, lexicon: Lexicon) -> Iterator[Piece]:
    """Words of the lexicon, and what OpenJTalk reads at once between them."""
    for piece in lexicon.cut(text, "ja"):
        if piece.phonemes:
            yield piece
        else:
            yield from map(Piece, _PIECE.findall(piece.text))


def normalize(text: str) -> str:
    """Return a text with numbers and signs spelled out, and marks in the models' form.

    Counts stay in digits: OpenJTalk applies the sound changes of counters (三百, 一本).
    """
    # NFC last: half-width kana, like some systems' texts, have separate voicing marks.
    text = unicodedata.normalize("NFC", "".join(_plain(c) for c in text))
    text = _spell_numbers(text)
    text = re.sub(r"(?<=[A-Za-z0-9 ])=(?=[A-Za-z0-9 -])", "イコール", text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"(?<=[ぁ-ゖァ-ヺー])~", "ー", text)
    # A hyphen is a mark only between words; inside Latin words it is dropped.
    text = re.sub(r"(?<=[A-Za-z0-9])[-‐](?=[A-Za-z0-9])", "", text)
    text = re.sub(r"\.{2,}", "…", text)
    text = re.sub(r"(?<!\d)\.(?=\d)|(?<=\d)\.(?!\d)", "。", text)
    text = re.sub(r"(?<=\d)。(?=\d)", "。 ", text)  # a sentence's end is no decimal point
    text = "".join(_MARK_OF.get(c, c) for c in text)
    return re.sub(rf"([{MARKS}])[{MARKS}]+", r"\1", text).strip()


def accented_phonemes(text: str) -> list[str]:
    """Return OpenJTalk's phonemes of a text, with "[", "]", "#" and "_" among them.

    Empty if it cannot read any of it. The marks follow Kurihara et al., "Prosodic Features Control
    by Symbols" (doi.org/10.1587/transinf.2020EDP7104), derived from HTS full-context labels: A
    holds the mora's position in its accent phrase (from the accent, from the start, from the end),
    F starts with the number of moras in the phrase.
    """
    openjtalk = _openjtalk()
    labels = [_LABEL.search(label) for label in openjtalk.make_label(openjtalk.run_frontend(text))]
    phonemes: list[str] = []
    for here, after in pairwise(labels):
        if here is None or after is None:
            raise AssertionError("OpenJTalk's labels have another form than expected")
        phone = here["phone"]
        if phone == "sil":
            continue
        if phone == "pau":
            phonemes.append("_")
            continue
        phonemes.append(phone.lower() if phone in "AEIOU" else phone)  # devoiced vowels
        mark = _pitch_mark(here, after)
        phonemes += [mark] if mark else []
    return phonemes


def _pitch_mark(here: re.Match[str], after: re.Match[str]) -> str:
    mora, next_mora = here["mora"], after["mora"]
    if here["left"] == next_mora == "1" and here["phone"] in ("cl", "N", *"aeiouAEIOU"):
        return "#"
    follows = mora.isdigit() and next_mora == str(int(mora) + 1)
    if follows and here["accent"] == "0" and mora != here["moras"]:
        return "]"
    return "[" if follows and mora == "1" else ""


@cache
def _openjtalk() -> Any:
    with redirect_stdout(StringIO()):  # it prints a hint about ONNX Runtime
        package = load_package("pyopenjtalk", "ja")
    if not Path(os.fsdecode(package.OPEN_JTALK_DICT_DIR)).is_dir():
        raise UserError(
            "The installed pyopenjtalk has no dictionary and would download one; "
            f"install one that has it with {install_command('ja')}."
        )
    return package


def _plain(character: str) -> str:
    """Map full-width ASCII to half width and half-width kana to full width; keep others."""
    if "！" <= character <= "｠" and character not in "！？，．：；～":
        return unicodedata.normalize("NFKC", character)
    if "｡" <= character <= "ﾟ":
        return unicodedata.normalize("NFKC", character)
    if character in "〜～∼":
        return "~"
    if character == "￥":
        return "¥"
    return " " if character.isspace() and character != "\n" else character


def _spell_numbers(text: str) -> str:
    """Spell dates, times, money, ranges and telephone numbers; counts stay in digits."""
    text = re.sub(r"\d{20,}", lambda m: _name_digits(m[0]), text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(
        r"(?<!\d)(\d{4})([/.-])(\d{1,2})\2(\d{1,2})(?!\d)",
        lambda m: f"{m[1]}年{int(m[3])}月{int(m[4])}日",
        text,
    )
    text = re.sub(r"(?<![\d-])0\d{1,4}-\d{1,4}-\d{3,4}(?![\d-])", _spell_telephone, text)
    text = re.sub(
        r"(?<![\d:])([01]?\d|2[0-9])[:：]([0-5]\d)(?![\d:：])",
        lambda m: f"{int(m[1])}時" + (f"{int(m[2])}分" if int(m[2]) else ""),
        text,
    )
    text = re.sub(r"(?<![\d/.])(\d+)/(\d+)(?![\d/.])", r"\2分の\1", text)
    text = re.sub(rf"([¥$€£]) ?(\d+(?:\.\d+)?)({_SCALE})?", _spell_money, text)
    text = re.sub(r"(?<=\d)([^\s\d]{0,3})[~](?=[¥$€£]?\d)", r"\1から", text)
    text = re.sub(r"(?<=\d)-(?=\d+(?:\.\d+)?(?:[^\d-]|$))", "から", text)
    return re.sub(r"(?<![A-Za-z0-9-])-(?=\d)", "マイナス", text)


def _spell_money(match: re.Match[str]) -> str:
    return f"{match[2]}{match[3] or ''}{_MONEY[match[1]]}"


def _spell_telephone(match: re.Match[str]) -> str:
    return "の".join(map(_name_digits, match[0].split("-")))


def _name_digits(text: str) -> str:
    return "".join(_DIGIT_NAMES[int(c)] for c in text)
