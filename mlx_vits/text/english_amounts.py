"""Spell amounts in English: dates, times, money, units, fractions, and plain numbers.

Readings follow upstream's `en_normalization` where it has one ("three fourths", "six dollars and
twenty-four cents", "nineteen oh five"). Where its order of rules garbles common text ("1990s" as
seconds, "10,11,12" as one number, a year before a full stop as an ordinal), the reading is what a
person would say.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mlx_vits.text.english_numbers import LONGEST_COUNT, cardinal, digits, number, ordinal

# Patterns of a whole number, with or without commas, and of one with an optional fraction.
_N = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_N}(?:\.\d+)?|\.\d+)"

_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_MONTH = rf"({'|'.join(_MONTHS)}|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
_MAGNITUDES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion"}
_UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "ml": ("milliliter", "milliliters"),
    "ft": ("foot", "feet"),
    "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "tbsp": ("tablespoon", "tablespoons"),
    "tsp": ("teaspoon", "teaspoons"),
    "hr": ("hour", "hours"),
    "hrs": ("hour", "hours"),
    "min": ("minute", "minutes"),
    "sec": ("second", "seconds"),
    "ms": ("millisecond", "milliseconds"),
    "GHz": ("gigahertz", "gigahertz"),
    "MHz": ("megahertz", "megahertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "Hz": ("hertz", "hertz"),
    "KB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "°C": ("degree celsius", "degrees celsius"),
    "°F": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
}
# A single letter is a unit only directly after the number, "5m"; upstream has the same four.
_LETTER_UNITS = {
    "m": ("meter", "meters"),
    "L": ("liter", "liters"),
    "h": ("hour", "hours"),
    "s": ("second", "seconds"),
}
_IDIOMS = {"24/7": "twenty-four seven", "9/11": "nine eleven"}
_SIGNS = {
    "+": " plus ",
    "=": " equals ",
    "×": " times ",
    "÷": " divided by ",
    "%": " percent ",
    "&": " and ",
    "@": " at ",
    "/": " ",
}


def _alternatives(table: dict[str, tuple[str, str]]) -> str:
    return "|".join(re.escape(key) for key in sorted(table, key=len, reverse=True))


def _month(name: str) -> str:
    return next(month for month in _MONTHS if month.startswith(name[:3]))


def _date(month: int, day: int, year: str) -> str:
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {number(year)}"


def _iso_date(m: re.Match[str]) -> str:
    month, day = int(m[2]), int(m[3])
    return _date(month, day, m[1]) if 1 <= month <= 12 and 1 <= day <= 31 else m[0]


def _month_first_date(m: re.Match[str]) -> str:
    month, day = int(m[1]), int(m[3])
    if month > 12 or m[2] == ".":  # day first, as outside America
        month, day = day, month
    return _date(month, day, m[4]) if 1 <= month <= 12 and 1 <= day <= 31 else m[0]


def _month_day(m: re.Match[str]) -> str:
    return f"{_month(m[1])} {ordinal(int(m[2]))}"


def _day_month(m: re.Match[str]) -> str:
    return f"the {ordinal(int(m[1]))} of {_month(m[2])}"


def _time(m: re.Match[str]) -> str:
    hour, minute, half = int(m[1]), int(m[2]), m[3] or ""
    if not half and (hour > 12 or hour == 0):
        half = " P M" if hour else " A M"
    spoken = cardinal(hour % 12 or 12)
    if minute:
        spoken += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not half:
        spoken += " o'clock"
    return spoken + half


def _decade(m: re.Match[str]) -> str:
    century, tens = m[1], m[2]
    if tens == "00":
        return "two thousands" if century == "20" else f"{cardinal(int(century or 0))} hundreds"
    plural = cardinal(int(tens))[:-1] + "ies" if tens != "10" else "tens"
    return f"{cardinal(int(century))} {plural}" if century else plural


def _money(m: re.Match[str]) -> str:
    symbol = m["before"] or m["after"]
    one, many, cent, cents = _CURRENCIES[symbol]
    amount = m["amount"] or m["trailing"]
    if m["magnitude"]:
        magnitude = m["magnitude"].lower()
        return f"{number(amount)} {_MAGNITUDES.get(magnitude, magnitude)} {many}"
    whole, _, fraction = amount.partition(".")
    if len(fraction) > 2:
        return f"{number(amount)} {many}"
    units, hundredths = int(whole.replace(",", "") or 0), int(fraction.ljust(2, "0"))
    parts = []
    if units or not hundredths:
        parts.append(f"{cardinal(units)} {one if units == 1 else many}")
    if hundredths:
        parts.append(f"{cardinal(hundredths)} {cent if hundredths == 1 else cents}")
    return " and ".join(parts)


def _money_range(m: re.Match[str]) -> str:
    return f"{number(m[2])} to {number(m[3])} {_CURRENCIES[m[1]][1]}"


def _unit(m: re.Match[str]) -> str:
    unit = m["spaced"] or m["touching"]
    singular, plural = _UNITS.get(unit) or _LETTER_UNITS[unit]
    return f"{number(m['amount'])} {singular if m['amount'] == '1' else plural}"


def _fraction(m: re.Match[str]) -> str:
    above, below = int(m[1]), int(m[2])
    if below < 2:
        return f"{cardinal(above)} over {cardinal(below)}"
    part = ("half" if above == 1 else "halves") if below == 2 else ordinal(below)
    spoken = f"{cardinal(above)} {part}" + ("s" if above > 1 and below > 2 else "")
    if m[3]:  # "7 and 1/2 hrs" is more than one
        spoken += " " + _UNITS[m[3]][m.string[: m.start()].endswith("and ")]
    return spoken


def _telephone(m: re.Match[str]) -> str:
    return ", ".join(digits(group) for group in re.findall(r"\d+", m[0]))


def _shares(m: re.Match[str]) -> str:
    """Two shares of a hundred, "50/50"; another fraction stays."""
    one, other = int(m[1]), int(m[2])
    if one + other != 100:
        return m[0]
    spoken = cardinal(one), cardinal(other)
    return (" " if any("-" in word for word in spoken) else "-").join(spoken)


_DURATION_UNITS = (("hour", "hours"), ("minute", "minutes"), ("second", "seconds"))


def _duration(m: re.Match[str]) -> str:
    """Hours, minutes and seconds that follow each other, "1h 30m"."""
    parts = zip(m.groups(), _DURATION_UNITS, strict=True)
    return " ".join(
        f"{cardinal(int(count))} {one if int(count) == 1 else many}"
        for count, (one, many) in parts
        if count
    )


_Reading = Callable[[re.Match[str]], str]


def _rule(pattern: str, reading: _Reading | str) -> tuple[re.Pattern[str], _Reading | str]:
    return re.compile(pattern), reading


# The order matters: earlier rules consume digits that later ones would misread.
_RULES = (
    _rule(
        rf"\d{{1,3}}(?:,\d{{3}}){{{LONGEST_COUNT // 3},}}|\d{{{LONGEST_COUNT + 1},}}",
        lambda m: digits(m[0]),
    ),
    _rule("|".join(re.escape(k) for k in _IDIOMS), lambda m: _IDIOMS[m[0]]),
    _rule(r"(?<![\w.,/])(\d{1,3})h ?(\d{1,2})(?:m|min)?(?: ?(\d{1,2})s)?(?!\w|\.\d)", _duration),
    _rule(r"(?<![\w.,/])()(\d{1,3})m(?:in)? ?(\d{1,2})s(?!\w)", _duration),
    _rule(r"(?<![\d/.])(\d\d)/(\d\d)(?![\d/]|\.\d)", _shares),
    _rule(r"\b(\d{4})[-/](\d{2})[-/](\d{2})\b", _iso_date),
    _rule(r"\b(\d{1,2})([/.])(\d{1,2})\2(\d{4}|\d{2})\b(?!\.\d)", _month_first_date),
    _rule(rf"\b{_MONTH} ([12]?\d|3[01])(?:st|nd|rd|th)?\b(?!:|\.\d)", _month_day),
    _rule(rf"\b([12]?\d|3[01])(?:st|nd|rd|th)? {_MONTH}(?!\w)", _day_month),
    _rule(rf"\b{_MONTH}(?= \d{{4}}\b)", lambda m: _month(m[1])),
    _rule(r"(?<![\w-])(?:1-)?(?:\(?\d{3}\)?[ -])?\d{3}-\d{4}(?![\w-])", _telephone),
    _rule(r"\b([01]?\d|2[0-3]):([0-5]\d)\b( [AP] M)?", _time),
    _rule(r"(?<!\w)(\d)'(\d{1,2})(?!\w)", r"\1 foot \2"),
    _rule(r"\b(\d\d)(\d0)'?s\b", _decade),
    _rule(r"(?<!\w)'?()([2-9]0)'?s\b", _decade),
    _rule(r"^(\d{1,2})\. (?=\S)", lambda m: f"{ordinal(int(m[1]))}, "),
    _rule(r"(?<=\d) +- +(?=\d)", " minus "),
    _rule(rf"(?<![^\s(])-(?=\.?\d|[{''.join(_CURRENCIES)}])", "negative "),
    _rule(r"(?<= [AP] M)-(?=\d)", " to "),
    _rule(r"(?<=\d) (?=\d{1,2}/\d{1,2}(?![\d/]))", " and "),
    _rule(rf"([{''.join(_CURRENCIES)}])({_DECIMAL})-\1?({_DECIMAL})(?![\w-])", _money_range),
    _rule(
        rf"(?P<before>[{''.join(_CURRENCIES)}]) ?(?P<amount>{_DECIMAL})"
        r"(?: ?(?P<magnitude>thousand|million|billion|trillion|bn|[kKmMbB])\b)?"
        rf"|(?P<trailing>{_DECIMAL}) ?(?P<after>[{''.join(_CURRENCIES)}])",
        _money,
    ),
    _rule(
        r"(?<![\d/.])(\d{1,3})/(\d{1,3})(?:ths?|rds?|nds?)?"
        rf"(?: ?({_alternatives(_UNITS)}))?(?![\w/])",
        _fraction,
    ),
    _rule(
        rf"(?<![\w.])(?P<amount>{_DECIMAL})"
        rf"(?:[ -]?(?P<spaced>{_alternatives(_UNITS)})|(?P<touching>[{''.join(_LETTER_UNITS)}]))"
        r"(?![A-Za-z])(?:\.(?=\s+[a-z]))?",
        _unit,
    ),
    _rule(
        rf"(?<![\w-])({_DECIMAL})-({_DECIMAL})(?![\w-])",
        lambda m: f"{number(m[1])}{'-' if m[1] == m[2] else ' to '}{number(m[2])}",
    ),
    _rule(rf"({_N})(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1].replace(",", "")))),
    _rule(r"#(?=\d)|\bNo (?=\d)", "number "),
    _rule(r"(?<=[A-Za-z])-?(?=\d)|(?<=\d)(?=[A-Za-z])", " "),
    _rule(rf"{_N}(?:\.\d+)+|\.\d+|{_N}", lambda m: number(m[0])),
    _rule("|".join(re.escape(sign) for sign in _SIGNS), lambda m: _SIGNS[m[0]]),
)


def spell_amounts(text: str) -> str:
    """Replace all digits in a text, with the signs and units around them, by words."""
    for pattern, reading in _RULES:
        text = pattern.sub(reading, text)
    return text
