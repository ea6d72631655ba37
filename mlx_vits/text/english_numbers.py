"""Numbers in English words: counts, ordinals, years, and single digits.

The wording matches the `inflect` package, which upstream uses (a comma after the thousands, "and"
in ordinals but not in counts); importing that package takes two seconds.
"""

from __future__ import annotations

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_GROUPS = ("", " thousand", " million", " billion", " trillion")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
LONGEST_COUNT = 3 * len(_GROUPS)  # digits


def cardinal(number: int, conjunction: str = "") -> str:
    """Spell a count below 10^15, "twelve thousand, three hundred forty-five".

    Args:
        number: zero or more.
        conjunction: word between hundreds and the rest, as in "one hundred and three".
    """
    if number == 0:
        return _ONES[0]
    # A last group without hundreds takes no comma: "one thousand (and) three".
    if number > 1000 and 0 < number % 1000 < 100:
        thousands = cardinal(number - number % 1000, conjunction)
        return " ".join(filter(None, [thousands, conjunction, cardinal(number % 1000)]))
    groups: list[str] = []
    for name in _GROUPS:
        number, rest = divmod(number, 1000)
        if rest:
            groups.insert(0, _below_thousand(rest, conjunction) + name)
    return ", ".join(groups)


def _below_hundred(number: int) -> str:
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def _below_thousand(number: int, conjunction: str) -> str:
    hundreds, rest = divmod(number, 100)
    words = [_ONES[hundreds], "hundred"] if hundreds else []
    if rest:
        words += [conjunction] if hundreds and conjunction else []
        words.append(_below_hundred(rest))
    return " ".join(words)


def ordinal(number: int) -> str:
    """Spell an ordinal, "one hundred and third", "twenty-second"."""
    words = cardinal(number, conjunction="and")
    # Only the last word changes, which may follow a hyphen: "twenty-two".
    start = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[start:]
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return words[:start] + last


def year(number: int) -> str:
    """Spell a year from 1001 to 2999: "nineteen oh five", "two thousand one", "ten sixty-six".

    Upstream reads every number in that range as a year.
    """
    century, rest = divmod(number, 100)
    if century == 20 and rest < 10:
        return cardinal(number)
    if rest == 0:
        return f"{_below_hundred(century)} hundred"
    return f"{_below_hundred(century)} {'oh ' if rest < 10 else ''}{_below_hundred(rest)}"


def digits(text: str) -> str:
    """Spell the digits of a string one by one, "five five five"; others are dropped."""
    return " ".join(_ONES[int(c)] for c in text if c in "0123456789")


def number(text: str) -> str:
    """Spell a number as written, with or without commas, a point or leading zeros.

    The integer part has at most `LONGEST_COUNT` digits, or starts with a zero. Four digits from
    1001 to 2999 are a year, with a comma a count.
    """
    whole, *decimals = text.split(".")
    plain = whole.replace(",", "")
    if decimals:
        spoken = cardinal(int(plain)) if plain else ""
        return " point ".join([spoken, *(digits(d) for d in decimals)]).strip()
    if len(plain) > 1 and plain[0] == "0":
        return digits(plain)
    value = int(plain)
    return year(value) if plain == whole and 1000 < value < 3000 else cardinal(value)
