"""A GPT on disk: upstream's `.ckpt`, or a folder.

| form | what | tensors |
| --- | --- | --- |
| pretrained, exported `.ckpt` | `weight`, `config`, `info` | fp16 or fp32, names with `model.` |
| `.ckpt` of a training's state | `state_dict`, `hyper_parameters` | fp32, names with `model.` |
| folder | `config.json`, `weights.safetensors` | names with or without `model.` |

Source: GPT-SoVITS `s1_train.py`, `AR/models/t2s_lightning_module.py`, `inference_webui.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.contents import check_tensors, is_generator
from mlx_vits.checkpoints.safetensors_header import read_header
from mlx_vits.checkpoints.state_dict import load_state, state_of
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.config import T2SConfig, read_json_table
from mlx_vits.errors import CheckpointError
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.system.files import atomic_write, fresh_folder, replace_folder

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
GPT_FOLDER, GPT_FILE = "gpt", "gpt.ckpt"  # within a base or a run
_PREFIX = "model."
_PHONES = "ar_text_embedding.word_embeddings.weight"
_GIVE = "give a .ckpt from GPT_weights, or a pretrained s1 file"


GPTForm = Literal["exported", "state", "folder"]


class GPTFile(NamedTuple):
    """A GPT's tensors and configuration.

    Attributes:
        config: as the file states it.
        tensors: numpy or MLX arrays under upstream's names, without `model.`.
        info: how far it was trained, in upstream's words ("GPT-e15"), or "".
        source: the file, for messages.
        form: one of those above.
    """

    config: T2SConfig
    tensors: dict[str, Any]
    info: str
    source: Path
    form: GPTForm


def find_gpt(folder: Path) -> Path | None:
    """The GPT of a base or a run: `gpt/`, else `gpt.ckpt`; None where there is none."""
    if (folder / GPT_FOLDER / CONFIG).is_file():
        return folder / GPT_FOLDER
    return folder / GPT_FILE if (folder / GPT_FILE).is_file() else None


def gpt_weights(path: Path) -> Path:
    """The file of a GPT's weights: the path itself, or that in its folder."""
    return path / WEIGHTS if path.is_dir() else path


def is_gpt(path: Path) -> bool:
    """Whether a path is that of a GPT: a `.ckpt`, or a folder of one."""
    if not path.is_dir():
        return path.suffix == ".ckpt"
    weights = path / WEIGHTS
    if not weights.is_file() or not (path / CONFIG).is_file():
        return False
    return any(name.removeprefix(_PREFIX) == _PHONES for name in read_header(weights).names)


def read_gpt(path: str | Path, *, version: str | None = None) -> GPTFile:
    """Read a GPT.

    Args:
        path: a `.ckpt`, or a folder with `config.json` and `weights.safetensors`.
        version: of the voice that it is for, one of `VERSIONS`; None takes any.

    Raises:
        CheckpointError: the file is missing, damaged, refused, no GPT, or one of another version.
    """
    path = Path(path)
    file = _read_folder(path) if path.is_dir() else _read_ckpt(path)
    # v2Pro and v2ProPlus share v2's phonemes.
    wished = None if version is None else "v1" if version == "v1" else "v2"
    if wished not in (None, file.config.version):
        raise CheckpointError(
            f"{path}: is a GPT of {file.config.version}, with {file.config.phoneme_vocab_size} "
            f"phonemes, but the voice is {version}; give a GPT of {wished}"
        )
    return file


def load_gpt_model(file: GPTFile, *, consume: bool = False) -> Text2SemanticDecoder:
    """A GPT with a file's weights.

    Args:
        consume: see `load_state`.

    Raises:
        CheckpointError: the tensors do not fit the configuration, or hold NaN or infinity.
    """
    model = Text2SemanticDecoder(file.config)
    load_state(model, file.tensors, source=str(file.source), consume=consume)
    return model


def _read_folder(path: Path) -> GPTFile:
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise CheckpointError(f"{path}: is no GPT's folder, which holds {CONFIG} and {WEIGHTS}")
    file = read_tensors(path / WEIGHTS)
    tensors = _own_names(file.tensors, path / WEIGHTS)
    config = T2SConfig.from_dict(read_json_table(path / CONFIG), source=str(path / CONFIG))
    return GPTFile(config, tensors, file.metadata.get("info", ""), path / WEIGHTS, "folder")


def _read_ckpt(path: Path) -> GPTFile:
    if path.suffix == ".safetensors":
        _own_names(read_tensors(path).tensors, path)  # says what else it is
        raise CheckpointError(f"{path}: holds a GPT without its {CONFIG}; give the folder of both")
    content = read_torch_archive(path)
    tables = content if isinstance(content, dict) else {}
    for name in ("weight", "state_dict"):
        if isinstance(tables.get(name), dict):
            tensors = _own_names(tables[name], path)
            break
    else:
        _own_names(tables, path)  # says what else it is
        raise CheckpointError(
            f"{path}: holds the tensors of a GPT but no configuration; save it in PyTorch as "
            "{'weight': ..., 'config': ..., 'info': ...}, with that of the GPT it comes from"
        )
    stated: Any = tables.get("config")
    if name == "state_dict":
        stated = tables.get("hyper_parameters")
        stated = stated.get("config") if isinstance(stated, dict) else None
    if not isinstance(stated, dict) or not isinstance(stated.get("model"), dict):
        raise CheckpointError(
            f"{path}: is damaged, it lacks the configuration of its GPT; copy or download it again"
        )
    info = tables.get("info")
    config = T2SConfig.from_dict(stated, source=str(path))
    form: GPTForm = "state" if name == "state_dict" else "exported"
    return GPTFile(config, tensors, info if isinstance(info, str) else "", path, form)


def _own_names(tensors: Mapping[Any, Any], source: Path) -> dict[str, Any]:
    """Tensors without upstream's prefix.

    Raises:
        CheckpointError: they are no GPT's.
    """
    named = {
        name.removeprefix(_PREFIX) if isinstance(name, str) else name: tensor
        for name, tensor in tensors.items()
    }
    if _PHONES in named:
        check_tensors(named, source)
        return named
    names = [name for name in named if isinstance(name, str)]
    if is_generator(names) or any(re.match("(dec|enc_p|discriminators|cfm)\\.", n) for n in names):
        raise CheckpointError(
            f"{source}: is a file of GPT-SoVITS's SoVITS stage, which gives a text its voice, not "
            f"a GPT; {_GIVE}"
        )
    raise CheckpointError(f"{source}: is not a GPT of GPT-SoVITS (no ar_text_embedding); {_GIVE}")


def copy_gpt(source: Path, output: Path) -> str:
    """Write a GPT in another form, after checking that its tensors fit its configuration.

    Args:
        source: as of `read_gpt`; of a training's state the weights alone are taken.
        output: `.ckpt` gives upstream's export (fp16), a name without ending a folder.

    Returns:
        A description of what was written.

    Raises:
        CheckpointError: the source is no GPT or damaged, or a GPT is not written in such a form.
    """
    if output.suffix not in ("", ".ckpt"):
        raise CheckpointError(
            f"{output}: a GPT is written as .ckpt, or as a folder, whose name has no ending; "
            "choose one of them"
        )
    file = read_gpt(source)
    state = state_of(load_gpt_model(file))
    write_gpt(output, state, file.config, info=file.info)
    return f"GPT of {file.config.version}, {len(state)} tensors"


def write_gpt(
    path: str | Path, state: Mapping[str, mx.array], config: T2SConfig, *, info: str
) -> None:
    """Write a GPT in the form that the path asks for.

    Args:
        path: `.ckpt` gives upstream's export (fp16), anything else a folder.
        state: from `state_of`.
        info: how far it was trained ("GPT-e15").

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".ckpt":
        weight = {_PREFIX + name: _half(array, name, path) for name, array in state.items()}
        write_torch_archive(path, {"weight": weight, "config": config.to_dict(), "info": info})
        return
    if path.exists() and not (
        path.is_dir() and {p.name for p in path.iterdir()} <= {CONFIG, WEIGHTS}
    ):
        raise CheckpointError(f"{path}: holds something else; choose another name")
    with fresh_folder(path) as fresh:
        with atomic_write(fresh / CONFIG) as file:
            file.write(json.dumps(config.to_dict(), indent=1).encode())
        write_tensors(fresh / WEIGHTS, state, {"info": info, "format": "pt"})
        replace_folder(fresh, path)


def _half(array: mx.array, name: str, path: Path) -> np.ndarray:
    half = array.astype(mx.float16)
    if not mx.all(mx.isfinite(half)).item():
        raise CheckpointError(
            f"{path}: cannot be written, {name} holds numbers that are too large for fp16, which "
            "GPT-SoVITS's GPTs are in; write a folder instead"
        )
    return np.array(half)
