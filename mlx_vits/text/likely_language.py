"""Guess the language of a text from its script and its commonest words.

Good enough to check that the transcripts of a voice, or a sentence, are in the language they are
read as; not a general language identifier.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

from mlx_vits.text.english_marks import plain_characters
from mlx_vits.text.mixed import can_be_japanese

# Frequent words, without accents. Words frequent in English are in no other list.
_COMMON_WORDS = {
    "English": """
        the of and to that it for with he you his they have are this be not i but my from she her
        him or by what there their would will if which when were been do your said how could out
        up who has had our them about into did very just than then now here can all more on
    """,
    "Spanish": """
        el la los las que y en un una es por con para su se lo como pero mas del al le muy esta este
        yo mi sin hay cuando donde porque ya todo nada tambien hoy vamos estoy tengo quiero
    """,
    "German": """
        der das und ich nicht ein eine ist zu mit sich auf fur dem den des auch er sie wir ihr aber
        wie im wenn noch nach bei sind wird habe hat uber nur mein kein sehr dann schon
    """,
    "French": """
        le la les et un une que est pas je il elle nous vous dans pour qui sur ne ce cette du des au
        avec mais son sa ses plus se tout bien etre fait sont comme tres aussi ou c'est j'ai
    """,
    "Italian": """
        il che di la e un una non per sono con gli le lo si del della dei nel alla mi ma questo
        questa anche piu ho hai ha molto perche quando io bene era al da suo ci
    """,
    "Portuguese": """
        que de o e um uma nao os com para por se eu na da ao mais mas como meu minha ele ela foi
        muito voce isso esta quando em dos das tem ser ja tambem sem bem seu
    """,
    "Dutch": """
        de het een en van ik niet dat zijn te met op er maar je ze hij voor wij heb heeft naar aan
        ook wel nog als dan om uit bij hebben geen deze mijn zou kan wat
    """,
    "Swedish": """
        och att det som en pa ar inte av jag med den ett vi du har till om han hon ni sig var fran
        ska nar mycket kan hade mig dig bara efter eller ocksa
    """,
    "Danish or Norwegian": """
        og det er jeg ikke en pa til av af med som har den de et vi du kan skal han hun om var
        fra meg mig sa hvad hva nar vil meget mye bare eller ogsa
    """,
    "Polish": """
        nie sie jest na ze co jak to ale tak za od po juz jestem dla czy byl przez ma tylko bardzo
        mnie moj gdy kiedy ten tym tego bylo sa bedzie moze
    """,
    "Czech": """
        se je na ze si jsem ale jak tak za po ze uz byl pro jako jeho aby kdyz bylo ma jen ten
        jsme neni co velmi tady byla jsou pred nebo
    """,
    "Turkish": """
        bir ve bu da de icin cok ne ile ama gibi daha mi ben sen o olarak var yok kadar sonra her
        degil simdi beni bana olan hic neden
    """,
    "Finnish": """
        ja on ei se etta han oli mina sina kun mutta niin ovat ole tama joka vain nyt kuin olen
        jos mita hyvin sen myos minun taman sitten
    """,
    "Hungarian": """
        az es nem hogy egy ez meg de volt van csak mar mint nagyon ha vagy azt el ki fel lesz itt
        minden mert ezt kell
    """,
    "Romanian": """
        si nu este sa la cu pe un o ca din pentru ce eu dar sunt fi lui era foarte
        acum cand aici fost
    """,
    "Indonesian or Malay": """
        yang dan di itu ini tidak dengan untuk dari saya akan ada ke kita pada kami kamu dia mereka
        sudah juga bisa karena apa adalah atau
    """,
    "Vietnamese": """
        khong la va toi cua co nguoi duoc cho mot nhung den nay trong anh em nhu chung rat voi lam
        nhieu ban minh chua di
    """,
}
_CANTONESE = re.compile("[嘅唔咗喺佢哋冇啲嚟嗰咩攞揾喎啩嘢噉]")  # rare in written Mandarin
_SHARE_OF_KANA = 0.1  # of kana and characters; less may be decoration in Chinese
_MIN_HITS = 2
# Share of common words. Texts of a listed language reach 0.17 to 0.4 with its own list and at most
# 0.13 with another's; texts of an unlisted language at most 0.09.
_SHARE_OF_COMMON = 0.12
_MIN_CHARACTERS = 6
_MIN_LATIN = 12  # letters; a shorter text may be a name of any language
_LATIN, _KANA, _CHARACTERS, _HANGUL = "Latin", "Kana", "Cjk", "Hangul"
_SCRIPT_OF = {"Hiragana": _KANA, "Katakana": _KANA, "Katakana-hiragana": _KANA}
_SCRIPT_OF["Ideographic"] = _CHARACTERS
_WRITTEN_IN = {
    "en": (_LATIN,),
    "zh": (_CHARACTERS,),
    "yue": (_CHARACTERS,),
    "ja": (_KANA, _CHARACTERS),
    "ko": (_HANGUL,),
    "auto": (_LATIN, _CHARACTERS, _KANA, _HANGUL),
}
_SPOKEN = {
    "en": ("English",),
    "zh": ("Chinese",),
    "yue": ("Cantonese", "Chinese"),  # written Chinese can be read in Cantonese
    "ja": ("Japanese",),
    "ko": ("Korean",),
    "auto": ("English", "Chinese", "Cantonese", "Japanese", "Korean"),
}


@cache
def _common_words() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in _COMMON_WORDS.items()}


def likely_language(text: str) -> str:
    """Name the likely language: "Spanish", "a language in Thai letters", "" if unknown."""
    scripts = _count_scripts(text)
    script = max(scripts, key=lambda name: scripts[name], default=_LATIN)
    if script == _HANGUL:
        return "Korean"
    if script in (_KANA, _CHARACTERS):
        if scripts[_KANA] > _SHARE_OF_KANA * (scripts[_KANA] + scripts[_CHARACTERS]):
            return "Japanese"
        return "Cantonese" if len(_CANTONESE.findall(text)) >= _MIN_HITS else "Chinese"
    return _latin_language(text) if script == _LATIN else f"a language in {script} letters"


def other_language(text: str, language: str) -> str:
    """Name the language that a text looks like, if it is not the one it is read as.

    Args:
        text: one or more transcripts.
        language: the code of `supported_languages()` it is read as.

    Returns:
        "" if nothing contradicts the language.
    """
    found, code = likely_language(text), _code(language)
    if is_unreadable(text, language):
        return found or "a language in Latin letters"
    if found == "Chinese" and code == "ja":
        characters = "".join(c for c in text if "\u3400" <= c <= "\u9fff")
        is_told = len(characters) >= _MIN_CHARACTERS and not can_be_japanese(characters)
        return found if is_told else ""
    if found in _SPOKEN[code] or (found == "English" and language != code):
        return ""
    return found


def is_unreadable(text: str, language: str) -> bool:
    """Whether most of a text is in a script that its language is not written in.

    Every language reads or spells Latin letters; but a text of nothing else is in another language.
    """
    scripts, code = _count_scripts(text), _code(language)
    own = sum(scripts[script] for script in {_LATIN, *_WRITTEN_IN[code]})
    if 2 * own < scripts.total():
        return True
    is_latin = set(scripts) == {_LATIN} and scripts[_LATIN] >= _MIN_LATIN
    return is_latin and language == code and _LATIN not in _WRITTEN_IN[code]


def _code(language: str) -> str:
    return language.removeprefix("all_").removesuffix("_yue")


def _count_scripts(text: str) -> Counter[str]:
    """Count letters by script ("Latin", "Kana", "Cjk", ...), weighted by sound."""
    scripts: Counter[str] = Counter()
    for character in unicodedata.normalize("NFKC", text):
        if unicodedata.category(character)[0] == "L":
            name = unicodedata.name(character, "?").split()[0].capitalize()
            script = _SCRIPT_OF.get(name, name)
            # A syllable, which takes about two letters in Latin.
            scripts[script] += 2 if script in (_KANA, _CHARACTERS, _HANGUL) else 1
    return scripts


def _latin_language(text: str) -> str:
    words = re.findall("[a-z']+", plain_characters(text).lower())
    hits = {name: sum(word in common for word in words) for name, common in _common_words().items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] >= max(_MIN_HITS, _SHARE_OF_COMMON * len(words)) else ""
