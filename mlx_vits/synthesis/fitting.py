"""Whether a T2S model, a voice, a reference and a text go together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.synthesis.companions import StoredReference
from mlx_vits.synthesis.generation import MUTE_CODE
from mlx_vits.synthesis.gpt import GPT
from mlx_vits.text.cleaner import resolve_language
from mlx_vits.text.symbols import symbols_for

if TYPE_CHECKING:
    from mlx_vits.synthesis.voice import Voice

# In a T2S model's `config.json`: all languages that it has heard, and the code of silence.
LANGUAGES_KEY, MUTE_KEY = "languages", "mute_code"


def mute_code(gpt: GPT) -> int:
    """Return the code of silence, at which speech is cut.

    Raises:
        CheckpointError: the model states one that does not exist.
    """
    code = gpt.config.extra.get(MUTE_KEY, MUTE_CODE)
    if type(code) is not int or not 0 <= code < gpt.config.EOS:  # True is an int, too
        raise CheckpointError(
            f"{gpt.name}: {MUTE_KEY} in its configuration is {code!r}, which is no code; put one "
            f"of 0 to {gpt.config.EOS - 1} there, or take it away"
        )
    return code


def language_of(reference: StoredReference, version: str) -> str:
    """Return the code of the language that a reference speaks.

    Raises:
        DataError: there is no such language, or the version lacks it.
    """
    try:
        return resolve_language(reference.language, version)
    except DataError as error:
        raise DataError(f"{reference.audio}: {error}") from error


def check_language(gpt: GPT, language: str, name: str, *, of: str = "the language") -> None:
    """Refuse a language that a T2S model says it has never heard.

    Args:
        language: as `resolve_language` gives it.
        of: what is in that language, for the message.

    Raises:
        DataError: it is one.
        CheckpointError: what the model says is no list of languages.
    """
    heard = gpt.config.extra.get(LANGUAGES_KEY) or []
    if not (isinstance(heard, list) and all(isinstance(code, str) for code in heard)):
        raise CheckpointError(
            f"{gpt.name}: {LANGUAGES_KEY} in its configuration is {heard!r:.80}, which is no list "
            'of languages such as ["en"]; put one there, or take it away'
        )
    if heard and language.removeprefix("all_") not in heard:
        raise DataError(
            f"{name}: the T2S model has heard {', '.join(heard)} alone, and {of} is {language!r}; "
            "take a full-size base (`mlx-vits download v2`) for other languages"
        )


def check_sizes(gpt: GPT, voice: Voice, path: Path) -> None:
    """Refuse a T2S model that counts phonemes or codes otherwise than the voice.

    Raises:
        CheckpointError: it does.
    """
    known, needed = gpt.config.phoneme_vocab_size, len(symbols_for(voice.version))
    if known < needed:
        raise CheckpointError(
            f"{path}: this T2S model knows {known} phonemes, and {voice.version} has {needed}; "
            f"give one of {voice.version}"
        )
    codes, entries = gpt.config.EOS, voice.config.reduced_dims.codebook_size
    if codes != entries:
        raise CheckpointError(
            f"{path}: this T2S model has {codes} codes, and the codebook of {voice.name} has "
            f"{entries}; take the one of the base that the voice was made from"
        )


def check_codebook(gpt: GPT, voice: Voice, path: Path) -> None:
    """Refuse a T2S model whose codes mean something else to the voice.

    Raises:
        CheckpointError: it does.
    """
    stated = gpt.config.extra.get(CODEBOOK_KEY)
    # Those that state none are upstream's, and go with upstream's own codebook.
    is_full_size = not voice.config.is_reduced
    fits = stated == codebook_sha256(voice.model) if stated else is_full_size
    if not fits:
        raise CheckpointError(
            f"{path}: this T2S model was trained with another codebook than {voice.name}'s; take "
            "the one of the base that the voice was made from"
        )
