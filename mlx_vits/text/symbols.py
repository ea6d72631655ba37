"""GPT-SoVITS's phoneme symbols; a symbol's index is its id in `enc_p.text_embedding`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

from mlx_vits.errors import DataError
from mlx_vits.text.data_files import read_data


def symbols_for(version: str) -> tuple[str, ...]:
    """Return the phoneme symbols of a model version, in the order of their ids.

    Args:
        version: "v1" has 322 symbols; every later version has 732, the first 322 of which are
            those of v1.

    Source: GPT-SoVITS `text/symbols.py` and `text/symbols2.py`, stored as data.
    """
    return _read_symbols("symbols_v1.json" if version == "v1" else "symbols_v2.json")


def phonemes_to_ids(phonemes: Iterable[str], version: str) -> list[int]:
    """Map phonemes to ids, indices into `symbols_for(version)`.

    Raises:
        DataError: a phoneme is not one of the version's symbols.
    """
    ids = _symbol_ids("v1" if version == "v1" else "v2")
    found = []
    for phoneme in phonemes:
        if phoneme not in ids:
            raise DataError(
                f"The phoneme {phoneme!r} is not one of the {len(ids)} symbols of version "
                f"{version}; prepare the text again with this version's front end."
            )
        found.append(ids[phoneme])
    return found


@cache
def _read_symbols(file_name: str) -> tuple[str, ...]:
    return tuple(json.loads(read_data(file_name)))


@cache
def _symbol_ids(version: str) -> dict[str, int]:
    return {symbol: i for i, symbol in enumerate(symbols_for(version))}
