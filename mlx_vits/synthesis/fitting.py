"""Whether a T2S model, a voice, a reference and a text go together."""

from __future__ import annotations

from pathlib import Path

from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.config import T2SConfig
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.synthesis.companions import StoredReference
from mlx_vits.synthesis.generation import MUTE_CODE
from mlx_vits.synthesis.gpt import GPT
from mlx_vits.text.cleaner import resolve_language
from mlx_vits.text.symbols import symbols_for

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


def check_fits(config: T2SConfig, model: SynthesizerTrn, name: str, path: Path) -> None:
    """Refuse a T2S model that counts phonemes or codes otherwise than a voice, or means others.

    Args:
        config: of the T2S model.
        model: of the voice.
        name: of the voice, for messages.
        path: of the T2S model, likewise.

    Raises:
        CheckpointError: it does.
    """
    version, sizes = model.config.version, model.config.reduced_dims
    known, needed = config.phoneme_vocab_size, len(symbols_for(version))
    if known < needed:
        raise CheckpointError(
            f"{path}: this T2S model knows {known} phonemes, and {version} has {needed}; give one "
            f"of {version}"
        )
    cure = "take the one of the base that the voice was made from"
    if sizes.codebook_size != config.EOS:
        raise CheckpointError(
            f"{path}: this T2S model has {config.EOS} codes, and the codebook of {name} has "
            f"{sizes.codebook_size}; {cure}"
        )
    stated = config.extra.get(CODEBOOK_KEY)
    # Those that state none are upstream's, and go with upstream's own codebook.
    if (stated != codebook_sha256(model)) if stated else model.config.is_reduced:
        raise CheckpointError(
            f"{path}: this T2S model was trained with another codebook than {name}'s; {cure}"
        )
