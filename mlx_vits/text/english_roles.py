"""Whether an English word is used as a verb, by the words around it.

A grammar of closed classes: determiners, prepositions, auxiliaries, pronouns and their like decide,
adverbs between them are skipped, and a plural is taken for a subject. Upstream runs a statistical
tagger instead, which needs a model of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Role = Literal["verb", "noun"]  # "noun" also stands for adjectives


def words(listed: str) -> frozenset[str]:
    """The words of a string."""
    return frozenset(listed.split())


MARKS = words(", . ! ? -")
SUBJECTS = words(
    "i you we they he she it who somebody someone anybody anyone everybody everyone nobody people "
    "i'd you'd we'd they'd he'd she'd which"
)
OBJECTS = words("me him us them it myself himself herself itself ourselves themselves you")
DETERMINERS = words(
    "a an the this these those my your his her its our their some any every each no another either "
    "neither both all many several few more most much such what whose enough one two three four "
    "five six seven eight nine ten twelve twenty fifty hundred thousand million"
)
POSSESSIVES = words("my your his her its our their whose")
PREPOSITIONS = words(
    "of in on by for with from at about into onto after before without within under over between "
    "among like as than against during through across behind beyond near off per since toward "
    "towards upon via except despite besides inside outside along around until till"
)
PARTICLES = words("up down away back out together apart aside")
MODALS = words(
    "will would can could shall should may might must cannot can't won't couldn't wouldn't "
    "shouldn't mustn't do does did don't doesn't didn't let's i'll you'll we'll they'll he'll "
    "she'll it'll who'll"
)
BE = words(
    "be am is are was were been being isn't aren't wasn't weren't i'm you're we're they're he's "
    "she's it's that's there's what's who's"
)
HAVE = words(
    "have has had having haven't hasn't hadn't i've you've we've they've who've could've would've "
    "should've"
)
LINKING = words(
    "look looks looked seem seems seemed feel feels felt remain remains remained stay stays stayed "
    "become becomes became get gets got sound sounds sounded appear appears appeared keep kept"
)
CAUSATIVES = words(
    "let lets make makes made help helps helped watch watched see saw hear heard have had please"
)
CONJUNCTIONS = words("and or but then so nor")
CLAUSE_OPENERS = words("if when while because although though whenever unless once where that how")
ADVERBS = words(
    "not never always also just still ever even only often soon sometimes usually already now then "
    "again almost perhaps maybe once twice rather quite very too so n't well better best first "
    "later today"
)
NOT_ADVERBS = words(
    "family reply july italy supply assembly belly bully ally jelly lily fly ugly lovely lonely "
    "friendly silly holy likely daily weekly monthly elderly early costly deadly lively"
)
ADJECTIVES = words(
    "new old good bad great big small little large long short high low own other last next first "
    "second third final early late young important different same public able free real full best "
    "better sure clear recent certain personal open red green blue white black brown grey hot cold "
    "warm cool strong weak heavy light dark bright dry wet clean dirty fast slow quick hard soft "
    "easy difficult simple strange main major minor special whole wide deep rich poor happy sad "
    "safe quiet loud fresh local national foreign legal military social political economic human "
    "medical financial annual daily sharp steep huge tiny giant terrible awful perfect complete "
    "total average single double modern ancient common rare serious successful popular famous "
    "official original physical southern northern eastern western complex additional further "
    "latest previous former current future direct private beautiful wonderful lovely funny broken"
)
PLURALS = words("people children men women police teeth feet mice geese sheep cattle folk parents")
# "to" is a preposition after these.
_BEFORE_TO = words(
    "due according owing thanks prior next close opposed addition leads led contributed "
    "contributes response access key answer solution listen listened listening listens"
)


def is_adverb(word: str) -> bool:
    """Whether a word may stand between a verb and what decides that it is one."""
    return word in ADVERBS or (word.endswith("ly") and len(word) > 4 and word not in NOT_ADVERBS)


def is_plural(word: str) -> bool:
    """Whether a word looks like a plural noun."""
    if word in PLURALS:
        return True
    ends = word.endswith("s") and not word.endswith(("ss", "us", "is", "'s"))
    known = DETERMINERS | PREPOSITIONS | MODALS | BE | HAVE | LINKING | ADVERBS
    return ends and len(word) > 3 and word not in known


def before(text: Sequence[str], index: int) -> int:
    """Index of the word before, adverbs left out; -1 at the start of a clause."""
    index -= 1
    while index >= 0 and is_adverb(text[index]):
        index -= 1
    return index if index >= 0 and text[index] not in MARKS else -1


def after(text: Sequence[str], index: int) -> str:
    """The word or mark that follows; empty at the end."""
    return text[index + 1] if index + 1 < len(text) else ""


def opens_object(word: str) -> bool:
    """Whether a word may begin the object of a verb before it."""
    return word in DETERMINERS or word in OBJECTS or word == "that"


def role(text: Sequence[str], index: int) -> Role | None:
    """Decide whether a word that may be both is used as a verb.

    Args:
        text: words and marks of a sentence, lower case.
        index: of the word.

    Returns:
        None where nothing near it decides.
    """
    at = before(text, index)
    left, right = text[at] if at >= 0 else "", after(text, index)
    farther = text[at - 1] if at > 0 else ""
    third_person = text[index].endswith("s") and not text[index].endswith("ss")
    if left == "to":
        is_preposition = farther in _BEFORE_TO and not opens_object(right)
        return "noun" if is_preposition or third_person else "verb"
    if left in MODALS:
        return "noun" if third_person else "verb"
    if left in SUBJECTS:
        return _after_subject(farther)
    if left in OBJECTS:
        return "verb" if farther in CAUSATIVES else None
    if left == "that":
        return _after_that(farther, right)
    if left in DETERMINERS or left in PREPOSITIONS or left in ADJECTIVES or left.endswith("'s"):
        return "noun"
    if left in BE or left in HAVE or left in LINKING:
        return "noun"
    if not left or left in CONJUNCTIONS or left in CLAUSE_OPENERS or left == "please":
        return _at_start(text, index, left)
    return _after_noun(left, farther, right, third_person)


def _after_subject(farther: str) -> Role | None:
    # "it" and "you" may be the object of a verb as well, "make it perfect".
    return None if farther in ("make", "makes", "made", "keep", "kept", "find") else "verb"


def _after_that(farther: str, right: str) -> Role | None:
    """Relative clause ("men that desert") or determiner ("that record")."""
    is_relative = is_plural(farther) or opens_object(right)
    return "verb" if is_relative and farther not in PREPOSITIONS else "noun"


def _at_start(text: Sequence[str], index: int, left: str) -> Role | None:
    right = after(text, index)
    if text[index].endswith("s"):
        return "verb" if left in CONJUNCTIONS and opens_object(right) else "noun"
    if opens_object(right) or right in PARTICLES:
        return "verb"
    if left == "please":
        return "verb"
    if left in CLAUSE_OPENERS:
        return "noun"
    if not left and right in BE | HAVE | MODALS | words("of"):
        return "noun"
    return None


def _after_noun(left: str, farther: str, right: str, third_person: bool) -> Role | None:
    """After a word of an open class, which is a noun in most cases."""
    if third_person:
        follows = opens_object(right) or right in PREPOSITIONS - {"of"} or right in PARTICLES
        return "verb" if follows or right in words("next here there alone") else "noun"
    if is_plural(left) and farther not in ("a", "an", "this", "each", "every"):
        return "noun" if right in BE | HAVE | MODALS else "verb"
    if opens_object(right) and right not in ("you", "what", "no"):
        return "verb"
    return "noun"
