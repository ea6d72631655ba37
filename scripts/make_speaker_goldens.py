"""Make `tests/goldens/speaker/`: what other people's code says of a clip and of random weights.

    python scripts/make_speaker_goldens.py LJ001-0002.flac [OUT]

The clip is LJ Speech's. Needs, in an environment of its own: torch, torchaudio,
kaldi-native-fbank, soundfile, safetensors and `pip install --no-deps speakerlab` (3D-Speaker's
package; its requirements are not needed here).

3D-Speaker's class has `forward` only, which ends in an embedding; GPT-SoVITS's copy adds
`forward3`, the mean over time before that. It is the first half of what the pooling layer (`TSTP`:
mean, then standard deviation) gives, and is taken from there. Nothing else differs.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import kaldi_native_fbank
import numpy as np
import soundfile
import torch
import torchaudio
import torchaudio.compliance.kaldi
from safetensors.numpy import save_file
from speakerlab.models.eres2net.ERes2NetV2 import ERes2NetV2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.recipe import make_tensor  # noqa: E402

OUT = ROOT / "tests/goldens/speaker"
START, SAMPLES = 8000, 20001  # of the clip at 32 kHz
SILENT, OFFSET = 4000, 300  # int16: digital silence at first, and a constant added after it
FULL = {"m_channels": 64, "baseWidth": 24, "scale": 4, "expansion": 4}
REDUCED = FULL | {"m_channels": 8}
SEED = 3
RULES: list[Any] = [
    ["running_mean$", "normal", 0.0, 0.3],
    ["running_var$", "abs", 0.5, 1.0],
    # Beyond the ceiling of 20: the first map, which has none, and two blocks that do.
    ["^bn1.weight$", "normal", 3.0, 0.5],
    ["layer[24].1.bn3.bias$", "normal", 5.0, 10.0],
    # Tame enough that the last digit of one layer is not the third of the next.
    ["bn3.weight$", "normal", 0.4, 0.1],
    ["(bn[0-9]|bns.[0-9]|shortcut.1|local_att.[14]).weight$", "normal", 1.0, 0.2],
    ["bias$", "normal", 0.0, 0.3],
    [".", "fanin", 0.0, 1.2],
]
EVERY = 7  # values of the full-size vector that are kept


def encoder(sizes: dict[str, int]) -> ERes2NetV2:
    """3D-Speaker's network with weights by recipe."""
    net = ERes2NetV2(**sizes).eval()
    made = {
        name: torch.from_numpy(make_tensor(name, tensor.shape, SEED, RULES))
        for name, tensor in net.state_dict().items()
        if tensor.is_floating_point()
    }
    net.load_state_dict(made, strict=False)  # the counters stay
    return net


def listen(net: ERes2NetV2, fbank: np.ndarray) -> dict[str, np.ndarray]:
    """Every stage's map averaged over its bands, and the vector."""
    taps: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            taps[name] = output.numpy()

        return hook

    names = ("bn1", "layer1", "layer2", "layer3", "layer4", "fuse34", "pool")
    hooks = [getattr(net, name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        net(torch.from_numpy(fbank))
    for hook in hooks:
        hook.remove()
    for name in ("layer2", "layer4"):
        share = float((taps[name] == 20).mean())
        print(f"{name}: {share:.1%} at the ceiling, first map up to {taps['bn1'].max():.0f}")
    pooled = taps.pop("pool")
    del taps["bn1"]
    found = {f"tap/{name}": tensor.mean(axis=2) for name, tensor in taps.items()}
    return found | {"out/vector": pooled[:, : pooled.shape[1] // 2]}


def draw_clip(path: Path) -> np.ndarray:
    """Part of a clip as `5-wav32k` holds it, int16, with silence and an offset."""
    wav, rate = soundfile.read(path, dtype="float32")
    wav = torchaudio.functional.resample(torch.from_numpy(wav), rate, 32000).numpy()
    part = (wav[START : START + SAMPLES] * 32768).astype(np.int16) + np.int16(OFFSET)
    part[:SILENT] = 0
    return part


def kaldi_fbank(wav: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = 16000
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, wav.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def write_names(path: Path, net: ERes2NetV2, *, checksums: bool) -> None:
    """Names and shapes, a line each; the checksums are those of the recipe's tensors."""
    rows = []
    for name, tensor in net.state_dict().items():
        entry: dict[str, Any] = {"shape": list(tensor.shape)}
        if checksums and tensor.is_floating_point():
            entry["crc32"] = zlib.crc32(tensor.numpy().tobytes())
        if tensor.is_floating_point():
            rows.append(f"{json.dumps(name)}: {json.dumps(entry)}")
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    out.mkdir(parents=True, exist_ok=True)
    clip = draw_clip(source)
    wav = torchaudio.transforms.Resample(32000, 16000)(torch.from_numpy(clip / np.float32(32768)))
    theirs = torchaudio.compliance.kaldi.fbank(
        wav[None], num_mel_bins=80, sample_frequency=16000, dither=0
    )
    random = np.random.default_rng(SEED)
    batch = (random.standard_normal((2, 37, 80)) * 2 - 8).astype(np.float32)

    reduced = encoder(REDUCED)
    tensors = {
        "in/wav32k": clip,
        "out/wav16k": wav.numpy(),
        "out/fbank_kaldi_native": kaldi_fbank(wav.numpy()),
        "out/fbank_torchaudio": theirs.numpy(),
        "out/clip_vector": listen(reduced, theirs[None].numpy())["out/vector"],
        "in/fbank": batch,
        **listen(reduced, batch),
    }
    write_names(out / "state_dict.json", reduced, checksums=True)
    full = encoder(FULL)
    vector = listen(full, batch)["out/vector"]
    tensors["out/full_vector"] = np.ascontiguousarray(vector[:, ::EVERY])
    write_names(out / "full_size.json", full, checksums=False)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, out / "speaker.safetensors")
    packages = ("torch", "torchaudio", "speakerlab", "kaldi-native-fbank")
    meta = {
        "sizes": REDUCED,
        "seed": SEED,
        "rules": RULES,
        "every": EVERY,
        "parameters": sum(parameter.numel() for parameter in full.parameters()),
        "made_with": {name: importlib.metadata.version(name) for name in packages},
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main()
