"""Characters to the token ids of a Chinese BERT, one token a character.

Source: Hugging Face `BertTokenizer` (`vocab.txt`, `tokenizer.json`), for texts whose every
character is a word of its own: Chinese characters and marks, as the Chinese front end leaves them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

CLS, SEP, UNK = "[CLS]", "[SEP]", "[UNK]"


class CharacterTokenizer:
    """A vocabulary of characters.

    Args:
        vocabulary: token to id; has [CLS], [SEP] and [UNK].
    """

    def __init__(self, vocabulary: Mapping[str, int]):
        self._vocabulary = vocabulary

    def __call__(self, text: str) -> list[int]:
        """Return one id a character between those of [CLS] and [SEP]; [UNK] for unknown ones."""
        ids = [self._id(character) for character in text]
        return [self._vocabulary[CLS], *ids, self._vocabulary[SEP]]

    def _id(self, character: str) -> int:
        # As the uncased models normalise: lower case, compatibility ideographs in their usual form.
        plain = unicodedata.normalize("NFD", character.lower())
        return self._vocabulary.get(plain, self._vocabulary[UNK])
