"""Text to phonemes: GPT-SoVITS's symbol lists, and one front end per language.

Importing this package reads no files; dictionaries and models are loaded on first use.
"""

from mlx_vits.text.cleaner import CleanText, clean_text, supported_languages
from mlx_vits.text.symbols import phonemes_to_ids, symbols_for

__all__ = ["CleanText", "clean_text", "phonemes_to_ids", "supported_languages", "symbols_for"]
