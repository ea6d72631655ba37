"""Whether Chinese characters are Chinese or Japanese, from the text that they stand in.

The language detector is often wrong about a few characters. What tells is kana, and characters that
one of the two languages does not write:

* A text without kana is Chinese. A sentence without kana is Japanese only in a text that has kana
  and nothing that is Chinese alone.
* A sentence with kana is Japanese, if nothing in it is Chinese alone.
* In a sentence of both, what the detector takes for Chinese is Chinese, and so is what Japanese
  does not write.
"""

from __future__ import annotations

import re

from mlx_vits.text.language_splitter import Item, joined
from mlx_vits.text.mixed import can_be_japanese

_SENTENCE_END = re.compile(r"(?<=[。！？!?\n])")
_KANA = re.compile("[\u3041-\u3096\u3099\u309a\u30a1-\u30fa\u30fc\uff66-\uff9f]")
_CHARACTERS = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)[^\\w]*")


def settle_characters(pieces: list[Item]) -> list[Item]:
    """Give Chinese and Japanese pieces the language that their sentence tells.

    Args:
        pieces: in the languages "zh", "ja" and others, which stay as they are.
    """
    sentences = _sentences(pieces)
    has_kana = [_has_kana(sentence) for sentence in sentences]
    has_chinese = [_has_chinese(sentence) for sentence in sentences]
    without_kana = "ja" if any(has_kana) and not any(has_chinese) else "zh"
    settled: list[Item] = []
    for sentence, kana, chinese in zip(sentences, has_kana, has_chinese, strict=True):
        for piece in sentence:
            if piece.kind not in ("zh", "ja"):
                settled.append(piece)
            elif kana and chinese:
                settled += _in_both(piece)
            else:
                settled.append(Item("ja" if kana else without_kana, piece.text))
    return joined(settled)


def _sentences(pieces: list[Item]) -> list[list[Item]]:
    sentences: list[list[Item]] = [[]]
    for piece in pieces:
        first, *rest = _SENTENCE_END.split(piece.text)
        sentences[-1] += [Item(piece.kind, first)] if first else []
        sentences += [[Item(piece.kind, part)] if part else [] for part in rest]
    return sentences


def _has_kana(sentence: list[Item]) -> bool:
    """Tell whether a sentence has kana."""
    return any(_KANA.search(piece.text) for piece in sentence)


def _has_chinese(sentence: list[Item]) -> bool:
    """Tell whether a sentence has characters, or words, that are Chinese alone."""
    return any(
        not can_be_japanese(run)
        for piece in sentence
        if piece.kind in ("zh", "ja")
        for run in _CHARACTERS.findall(piece.text)
    )


def _in_both(piece: Item) -> list[Item]:
    """Cut what Japanese does not write out of a piece of a sentence of both languages."""
    if not _KANA.search(piece.text):
        return [
            Item("ja" if piece.kind == "ja" and not _has_chinese([piece]) else "zh", piece.text)
        ]
    pieces: list[Item] = []
    done = 0
    for run in _CHARACTERS.finditer(piece.text):
        if not _is_written_in_japan(run[1]):
            pieces += [Item("ja", piece.text[done : run.start()]), Item("zh", run[0])]
            done = run.end()
    return [part for part in [*pieces, Item("ja", piece.text[done:])] if part.text]


def _is_written_in_japan(characters: str) -> bool:
    try:
        characters.encode("euc_jis_2004")
    except UnicodeEncodeError:
        return False
    return True
