"""Expand abbreviations, initials, dotted letters, Roman numerals and addresses.

Upstream looks up a title and then turns its dot into a pause ("Mr", "."); here the dot is dropped
unless it also ends the sentence.
"""

from __future__ import annotations

import re

from mlx_vits.text.english_numbers import cardinal, ordinal

_TITLES = {
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Ms",
    "Dr": "Doctor",
    "Prof": "Professor",
    "Gen": "General",
    "Col": "Colonel",
    "Capt": "Captain",
    "Lt": "Lieutenant",
    "Sgt": "Sergeant",
    "Maj": "Major",
    "Cmdr": "Commander",
    "Adm": "Admiral",
    "Rev": "Reverend",
    "Hon": "Honorable",
    "Gov": "Governor",
    "Sen": "Senator",
    "Rep": "Representative",
    "Pres": "President",
    "St": "Saint",
    "Mt": "Mount",
    "Ft": "Fort",
}
_BEFORE_NUMBER = {
    "No": "number",
    "Nos": "numbers",
    "Fig": "figure",
    "Vol": "volume",
    "Ch": "chapter",
    "Sec": "section",
    "p": "page",
    "pp": "pages",
}
_ANYWHERE = {
    "Jr": "Junior",
    "Sr": "Senior",
    "St": "Street",
    "Dr": "Drive",
    "Ave": "Avenue",
    "Blvd": "Boulevard",
    "Rd": "Road",
    "Co": "Company",
    "Corp": "Corporation",
    "Inc": "Incorporated",
    "Ltd": "Limited",
    "Dept": "Department",
    "Esq": "Esquire",
    "vs": "versus",
    "approx": "approximately",
    "etc": "etc",
    "Ph.D": "P H D",
}
_ROMAN = {"I": 1, "V": 5, "X": 10}
_REGNAL = (
    "Alexander|Benedict|Charles|Clement|Edward|Elizabeth|Frederick|George|Gregory|Henry|"
    "James|John|Leo|Louis|Napoleon|Nicholas|Paul|Philip|Pius|Richard|Urban|William"
)
_TOP_LEVEL = "com|org|net|edu|gov|mil|info|io|ai|co|uk|us|de|fr|jp|cn|eu|app|dev|tv|me"


def _alternatives(table: dict[str, str]) -> str:
    return "|".join(re.escape(key) for key in sorted(table, key=len, reverse=True))


_LATIN = re.compile(r"\b(i\.\s?e|e\.\s?g)\b(?:\.,?|(?=,))", re.IGNORECASE)
_HALF_OF_DAY = re.compile(r"(?<=\d)\s*([apAP])\.?\s?[mM]\b(\.?)(?=(\s+[A-Z]|\s*$)?)")
_TITLE = re.compile(rf"(?<![\w.])({_alternatives(_TITLES)})(?:\.(?=\s*\w)|(?= [A-Z]))")
_NUMBERED = re.compile(rf"(?<![\w.])({_alternatives(_BEFORE_NUMBER)})\.\s?(?=\d)", re.IGNORECASE)
_SHORTENED = re.compile(rf"(?<![\w.])({_alternatives(_ANYWHERE)})\.(\s*$)?", re.IGNORECASE)
_STREET = re.compile(r"(?<=[a-z] )([A-Z]\w+ )(St|Dr)\.(?= [A-Z])|()\b(St)\.(?= [a-z])")
_LETTERS = re.compile(r"(?<![\w.'])((?:[A-Za-z]\.\s?)+[A-Za-z])\.(?:'?(s\b)|(?![A-Za-z])(\s*$)?)")
_INITIAL = re.compile(r"(^|[A-Z][A-Za-z']*\.? )([A-HJ-Z])(?<![AP] M)\.(?=\s?[A-Z])")
# A lone "I" is a numeral only where it is unlikely to be the pronoun ("the book I read").
_NUMERAL = r"([IVX]{2,}|[VX]|I(?! [a-z]))\b"
_NUMERAL_AFTER_KING = re.compile(rf"\b({_REGNAL}) {_NUMERAL}")
_NUMERAL_AFTER_PART = re.compile(
    rf"\b((?i:war|chapter|part|act|scene|book|volume|phase|type|section|title)) {_NUMERAL}"
    r"|\b(World War) (I)\b"
)
_WORLD_WAR = re.compile(r"\bWW ?(?=I+\b)")
_NUMERAL_ALONE = re.compile(
    r"\b(II|III|VII|VIII|XII|XIII)\b"
)  # IV, VI and XI are also abbreviations
_ADDRESS = re.compile(
    rf"(?:https?://)?(?:[\w.+-]+@)?(?:[A-Za-z0-9-]+\.)+(?:{_TOP_LEVEL})\b(?:/[\w./%-]*\w)?/?"
    r"|https?://[\w./%-]*\w/?"
)
_DOT_IN_NAME = re.compile(r"(?<=[A-Za-z]{2})\.(?=[a-z]{2})")


def expand_abbreviations(text: str) -> str:
    """Write out abbreviations; dots that end a sentence are kept."""
    text = _ADDRESS.sub(_spell_address, text)
    text = _LATIN.sub(lambda m: "that is" if m[1][0] in "iI" else "for example", text)
    text = _HALF_OF_DAY.sub(_half_of_day, text)
    text = _NUMBERED.sub(lambda m: _look_up(_BEFORE_NUMBER, m[1]) + " ", text)
    text = _STREET.sub(lambda m: f"{m[1]}{_ANYWHERE[m[2]]}." if m[2] else _ANYWHERE["St"], text)
    text = _TITLE.sub(lambda m: _TITLES[m[1]], text)
    text = _SHORTENED.sub(lambda m: _look_up(_ANYWHERE, m[1]) + _stop(m[2]), text)
    text = _LETTERS.sub(_spaced_letters, text)
    text = _expand_initials(text)
    text = _WORLD_WAR.sub("World War ", text)
    text = _NUMERAL_AFTER_KING.sub(lambda m: f"{m[1]} the {ordinal(_roman(m[2]))}", text)
    text = _NUMERAL_AFTER_PART.sub(
        lambda m: f"{m[1] or m[3]} {cardinal(_roman(m[2] or m[4]))}", text
    )
    text = _NUMERAL_ALONE.sub(lambda m: cardinal(_roman(m[1])), text)
    return _DOT_IN_NAME.sub(" dot ", text)


def _stop(end: str | None) -> str:
    return "" if end is None else "."


def _look_up(table: dict[str, str], key: str) -> str:
    return next(word for short, word in table.items() if short.lower() == key.lower())


def _half_of_day(match: re.Match[str]) -> str:
    letter, dot, end_or_capital = match.groups()
    return f" {letter.upper()} M" + ("." if dot and end_or_capital is not None else "")


def _expand_initials(text: str) -> str:
    # An initial may be recognisable only after the one before it: "J. R. R. Tolkien".
    while (shorter := _INITIAL.sub(r"\1\2 ", text)) != text:
        text = re.sub(r" +", " ", shorter)
    return text


def _spaced_letters(match: re.Match[str]) -> str:
    letters = " ".join(c.upper() for c in match[1] if c.isalpha())
    return letters + ("'s" if match[2] else _stop(match[3]))


def _roman(numeral: str) -> int:
    values = [_ROMAN[c] for c in numeral]
    return sum(-v if v < n else v for v, n in zip(values, [*values[1:], 0], strict=True))


def _spell_address(match: re.Match[str]) -> str:
    address = re.sub(r"^https?://", "", match[0]).rstrip("/")
    address = re.sub(r"^www\b", "W W W", address)
    for mark, word in ((".", "dot"), ("@", "at"), ("/", "slash"), ("-", "dash"), ("%", " ")):
        address = address.replace(mark, f" {word} ")
    return address
