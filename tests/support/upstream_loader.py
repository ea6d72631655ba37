"""What GPT-SoVITS does with a voice before it speaks, without its model: a stand-in for tests.

    python -m tests.support.upstream_loader [--expected NAMES.json] VOICE.pth ...

Prints one report for each file, as JSON. Written from the description of upstream's formats alone,
with nothing of mlx_vits, and run in a process of its own, as PyTorch and MLX bring a BLAS each.
Upstream opens its files with `weights_only=False`; here it has to work with True as well, so the
one class that its own files name, `utils.HParams`, is made known first.

Source: GPT-SoVITS `process_ckpt.py` (`get_sovits_version_from_path_fast`, `load_sovits_new`),
`utils.py`, `inference_webui.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import types
import zlib
from pathlib import Path
from typing import Any, NamedTuple


class Version(NamedTuple):
    """The phoneme table's version, the model's, and whether it is a LoRA."""

    symbols: str
    model: str
    is_lora: bool


BY_HASH = {
    "dc3c97e17592963677a4a1681f30c653": Version("v2", "v2", False),  # s2G488k.pth
    "43797be674a37c1c83ee81081941ed0f": Version("v2", "v3", False),  # s2Gv3.pth
    "6642b37f3dbb1f76882b69937c95a5f3": Version("v2", "v2", False),  # s2G2333K.pth
    "4f26b9476d0c5033e04162c486074374": Version("v2", "v4", False),  # s2Gv4.pth
    "c7e9fce2223f3db685cdfa1e6368728a": Version("v2", "v2Pro", False),  # s2Gv2Pro.pth
    "66b313e39455b57ab1b0bc0b239c9d0a": Version("v2", "v2ProPlus", False),  # s2Gv2ProPlus.pth
}
BY_HEADER = {
    b"00": Version("v1", "v1", False),
    b"01": Version("v2", "v2", False),
    b"02": Version("v2", "v3", False),
    b"03": Version("v2", "v3", True),
    b"04": Version("v2", "v4", True),
    b"05": Version("v2", "v2Pro", False),
    b"06": Version("v2", "v2ProPlus", False),
}
V1_BELOW_BYTES = 82978 * 1024
V2_BELOW_BYTES = 700 * 1024**2

# What the constructor takes out of `model`; upstream swallows all other keys.
CONSTRUCTOR: dict[str, Any] = {
    "inter_channels": int,
    "hidden_channels": int,
    "filter_channels": int,
    "n_heads": int,
    "n_layers": int,
    "kernel_size": int,
    "p_dropout": (int, float),
    "resblock": str,
    "resblock_kernel_sizes": list,
    "resblock_dilation_sizes": list,
    "upsample_rates": list,
    "upsample_initial_channel": int,
    "upsample_kernel_sizes": list,
    "gin_channels": int,
    "semantic_frame_rate": str,
    "freeze_quantizer": bool,
    "version": str,
}
FROM_DATA = ("filter_length", "hop_length", "win_length", "sampling_rate", "n_speakers")


class AttributeDict(dict):
    """A dictionary whose keys are attributes too, all the way down."""

    def __init__(self, values: Any):
        super().__init__(values)
        for key, value in self.items():
            wrapped = AttributeDict(value) if isinstance(value, dict) else value
            self[key] = wrapped
            setattr(self, key, wrapped)


def make_hparams_known() -> None:
    """Puts upstream's own class under its name, for the files that upstream wrote."""
    import torch  # not above: the version can be told without it

    class HParams:
        def __init__(self, **values: Any):
            self.__dict__.update(values)

    HParams.__module__, HParams.__qualname__ = "utils", "HParams"
    module = types.ModuleType("utils")
    module.HParams = HParams  # type: ignore[attr-defined]
    sys.modules["utils"] = module
    torch.serialization.add_safe_globals([HParams])


def plain(value: Any) -> Any:
    """HParams as dictionaries."""
    if type(value).__name__ == "HParams":
        value = value.__dict__
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def detect_version(path: Path) -> Version:
    """Hash of the first 8192 bytes, then the first two bytes, then the size."""
    with path.open("rb") as file:
        head = file.read(8192)
    known = BY_HASH.get(hashlib.md5(head).hexdigest())
    if known is not None:
        return known
    if head[:2] != b"PK":
        return BY_HEADER[head[:2]]  # an unknown code is a KeyError upstream as well
    size = path.stat().st_size
    if size < V1_BELOW_BYTES:
        return Version("v1", "v1", False)
    return Version("v2", "v2" if size < V2_BELOW_BYTES else "v3", False)


def load(path: Path) -> Any:
    """The file's object; `PK` is put back where another header lies over it."""
    import torch

    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.load(io.BytesIO(b"PK" + file.read()), map_location="cpu", weights_only=True)


def constructor_arguments(hps: Any) -> dict[str, Any]:
    """What the model would be built with.

    Raises:
        AttributeError, KeyError, TypeError: something that upstream reads is not there, or is of
            another type.
    """
    data = {name: getattr(hps.data, name) for name in FROM_DATA}
    for name, value in data.items():
        if type(value) is not int:
            raise TypeError(f"data.{name} is {value!r}")
    for name, kind in CONSTRUCTOR.items():
        if not isinstance(hps.model[name], kind):
            raise TypeError(f"model.{name} is {hps.model[name]!r}")
    return {
        "spec_channels": data["filter_length"] // 2 + 1,
        "segment_size": hps.train.segment_size // data["hop_length"],
        "n_speakers": data["n_speakers"],
    } | {name: hps.model[name] for name in CONSTRUCTOR}


def compare(weight: dict[str, Any], expected: dict[str, Any]) -> dict[str, list[str]]:
    """What `load_state_dict(strict=False)` would report; a shape that differs it would raise."""
    shared = [name for name in weight if name in expected]
    shapes = [name for name in shared if list(weight[name].shape) != list(expected[name])]
    return {
        "missing": [name for name in expected if name not in weight],
        "unexpected": [name for name in weight if name not in expected],
        "misshapen": shapes,
    }


def open_voice(path: Path, expected: dict[str, Any] | None = None) -> dict[str, Any]:
    """Goes through all that upstream does up to `load_state_dict`.

    Args:
        path: the voice.
        expected: shapes of the model's tensors by name, with or without `enc_q`, or None.

    Raises:
        Whatever upstream would stumble over.
    """
    detected = detect_version(path)
    content = load(path)
    weight = content["weight"]
    hps: Any = AttributeDict(plain(content["config"]))
    hps.model.semantic_frame_rate = hps.model["semantic_frame_rate"] = "25hz"
    table = weight.get("enc_p.text_embedding.weight")
    symbols = "v1" if table is not None and table.shape[0] == 322 else "v2"
    version = detected.model
    if version not in ("v3", "v4") and "Pro" not in version:
        version = symbols
    hps.model.version = hps.model["version"] = version
    report: dict[str, Any] = {
        "detected": detected,
        "version": version,
        "symbols": symbols,
        "info": content["info"],
        "stated_version": plain(content["config"])["model"].get("version"),
        "arguments": constructor_arguments(hps),
        "keys": list(content),
        "config_keys": sorted(plain(content["config"])),
        "names": list(weight),
        "dtypes": sorted({str(tensor.dtype) for tensor in weight.values()}),
        "scattered": [name for name, tensor in weight.items() if not tensor.is_contiguous()],
        "crc32": {name: zlib.crc32(tensor.numpy().tobytes()) for name, tensor in weight.items()},
        "inited": weight["quantizer.vq.layers.0._codebook.inited"].tolist(),
    }
    if expected is not None:
        spoken = {name: shape for name, shape in expected.items() if "enc_q" not in name}
        report |= compare(weight, spoken)
    return report


def shapes_in(path: Path) -> dict[str, Any]:
    """Shapes by name: out of a voice that upstream itself wrote, or out of a list of names."""
    if path.suffix == ".pth":
        return {name: list(tensor.shape) for name, tensor in load(path)["weight"].items()}
    listed = json.loads(path.read_text())
    # Either [shape, dtype] or the shape alone.
    return {
        name: entry[0] if isinstance(entry[0], list) else entry for name, entry in listed.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Opens voices as GPT-SoVITS does.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--expected", nargs="+", type=Path, help="names or a voice, for each file")
    options = parser.parse_args()
    make_hparams_known()
    expected = options.expected or [None] * len(options.files)
    reports = [
        open_voice(path, shapes_in(shapes) if shapes is not None else None)
        for path, shapes in zip(options.files, expected, strict=True)
    ]
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
