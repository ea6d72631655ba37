"""The Japanese front end: a transcript in, OpenJTalk's phonemes with pitch accents out.

It gives what GPT-SoVITS's `text/japanese.py` gives: phonemes; "[" where the pitch rises and "]"
where it falls (symbols from version v2 on, "UNK" in v1); "UNK" for the border of an accent phrase
(upstream's "#", which no version has) and for quotes and brackets; "_" for a pause that OpenJTalk
puts. Readings come from `pyopenjtalk-plus`, which ships its dictionary and comes built for every
system; where `pyopenjtalk` is installed in its place, upstream's package, which downloads one when
it is first used, that one is used as far as its dictionary is there. The two agree in nearly all
phonemes; `pyopenjtalk-plus` finds fewer and longer accent phrases, nearer to speech.

Different here: numbers with commas and points, times, dates, money, percentages, telephone numbers
and signs are read as people read them, where upstream cuts them apart or has "UNK"; Latin letters
keep their case, by which OpenJTalk knows names (iPhone is アイフォン; upstream has it spelled).
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
from mlx_vits.text.chinese_marks import MARKS, is_silent
from mlx_vits.text.cleaner import UNKNOWN, CleanText
from mlx_vits.text.extras import load_package
from mlx_vits.text.lexicon import NO_WORDS, Lexicon, Piece
from mlx_vits.text.symbols import symbols_for

_SPOKEN = "A-Za-z0-9々〆\u3041-\u3096\u309d\u309e\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_SPOKEN += "\uf900-\ufaff\U00020000-\U0003134f"
_LONGEST_PIECE = 400  # characters; OpenJTalk refuses texts of some thousands
_PIECE = re.compile(
    rf"[{_SPOKEN}]{{1,{_LONGEST_PIECE}}}(?:(?<=[0-9])[.][0-9]{{1,20}}[{_SPOKEN}]{{0,{_LONGEST_PIECE}}})?"
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
    """What `mlx_vits.text.clean_text` calls.

    Raises:
        DataError: nothing in the text can be spoken in Japanese.
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
    """The text with numbers and signs as they are read, and marks in the models' form.

    Counts stay in digits: OpenJTalk reads them with the changes that counters bring (三百, 一本).
    """
    # Composed last: half-width kana have their voicing marks apart, as some systems' texts have.
    text = unicodedata.normalize("NFC", "".join(_plain(c) for c in text))
    text = _spell_numbers(text)
    text = re.sub(r"(?<=[A-Za-z0-9 ])=(?=[A-Za-z0-9 -])", "イコール", text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"(?<=[ぁ-ゖァ-ヺー])~", "ー", text)
    # A hyphen is a mark between words only; inside Latin words it is nothing.
    text = re.sub(r"(?<=[A-Za-z0-9])[-‐](?=[A-Za-z0-9])", "", text)
    text = re.sub(r"\.{2,}", "…", text)
    text = re.sub(r"(?<!\d)\.(?=\d)|(?<=\d)\.(?!\d)", "。", text)
    text = re.sub(r"(?<=\d)。(?=\d)", "。 ", text)  # a sentence's end is no decimal point
    text = "".join(_MARK_OF.get(c, c) for c in text)
    return re.sub(rf"([{MARKS}])[{MARKS}]+", r"\1", text).strip()


def accented_phonemes(text: str) -> list[str]:
    """OpenJTalk's phonemes of some words, with "[", "]", "#" and "_" among them.

    Empty where it can read nothing. The marks are those of Kurihara et al., "Prosodic Features
    Control by Symbols" (doi.org/10.1587/transinf.2020EDP7104), found in HTS full-context labels:
    A is the mora's place in its accent phrase (from the accent, from the start, from the end), F
    begins with the phrase's number of moras.
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
        phonemes.append(phone.lower() if phone in "AEIOU" else phone)  # whispered vowels
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
    with redirect_stdout(StringIO()):  # it prints what it could do with an ONNX runtime
        package = load_package("pyopenjtalk", "ja")
    if not Path(os.fsdecode(package.OPEN_JTALK_DICT_DIR)).is_dir():
        raise UserError(
            "The installed pyopenjtalk has no dictionary and would download one; "
            "install one that has it with `pip install 'mlx-vits[ja]'`."
        )
    return package


def _plain(character: str) -> str:
    """Full-width letters, digits and signs in ASCII, half-width kana in full; others stay."""
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
    """Dates, times, money, ranges and telephone numbers with the words between their numbers."""
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
