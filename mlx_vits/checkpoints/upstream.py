"""Read GPT-SoVITS's own files without PyTorch, and tell their kinds apart by content.

| form | top level | tensors |
| --- | --- | --- |
| pretrained | `weight`, `config`, `info` | with `enc_q`; a discriminator has `weight` alone |
| exported | `weight`, `config`, `info` | a voice: fp16, without `enc_q` |
| resume | `model`, `iteration`, `optimizer`, `learning_rate` | fp32, with `enc_q` |

A bare state dict, as written by scripts that merge voices, counts as one of the first two.

Source: GPT-SoVITS `process_ckpt.py` (`savee`, `load_sovits_new`), `utils.py` (`save_checkpoint`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_vits.checkpoints.contents import (
    check_tensors,
    has_posterior,
    is_discriminator,
    is_generator,
    refuse_others,
)
from mlx_vits.checkpoints.torch_archive import read_torch_archive, read_version_code
from mlx_vits.config import CONFIG_FILE, VERSIONS, read_json_table
from mlx_vits.errors import CheckpointError

# The two digits over the first two bytes, as upstream reads them. It writes the last four, and
# those of 03 and 04 over LoRAs.
CODE_VERSIONS = {
    "00": "v1",
    "01": "v2",
    "02": "v3",
    "03": "v3",
    "04": "v4",
    "05": "v2Pro",
    "06": "v2ProPlus",
}
VERSION_CODES = {"v2Pro": "05", "v2ProPlus": "06"}
# Upstream takes a file that starts with `PK` for v1 below this size, for v2 otherwise.
V2_LEAST_BYTES = 82978 * 1024
_LORAS = ("03", "04")

_MAX_EPOCHS = 1 << 20
_MAX_QUOTED, _MAX_NAME_CHARS = 5, 60  # keys of an unknown file quoted in a message

Form = Literal["pretrained", "exported", "resume"]


@dataclass(frozen=True)
class UpstreamFile:
    """A `.pth` of a generator or a discriminator.

    Attributes:
        path: of the file.
        net: which of the two.
        form: see the table above.
        tensors: numpy arrays under upstream's names, in PyTorch's axes.
        config: upstream's nested dictionary, or empty.
        info: training progress in upstream's words, or "".
        version_code: the two digits in its first bytes, or None.
        iteration: of a resume file, epochs finished.
        learning_rate: of a resume file, before decay.
        optimizer: of a resume file, AdamW's state dict.
    """

    path: Path
    net: Literal["generator", "discriminator"]
    form: Form
    tensors: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    info: str = ""
    version_code: str | None = None
    iteration: int = 0
    learning_rate: float = 0.0
    optimizer: dict[str, Any] = field(default_factory=dict)


def read_upstream(path: str | Path) -> UpstreamFile:
    """Read any `.pth` of GPT-SoVITS's SoVITS stage.

    A resume file holds no configuration; GPT-SoVITS's `config.json` of the experiment is used if it
    is beside the file or one folder above.

    Raises:
        CheckpointError: the file is missing, damaged, refused, of an unsupported version, or
            neither a generator nor a discriminator.
    """
    path = Path(path)
    code = read_version_code(path)
    if code is not None and CODE_VERSIONS.get(code) not in VERSIONS:
        model = CODE_VERSIONS.get(code, f"of the unknown kind {code}")
        model += " (LoRA)" if code in _LORAS else ""
        raise CheckpointError(
            f"{path}: is a voice {model}, which mlx_vits does not know; give one of v1, v2, v2Pro "
            "or v2ProPlus"
        )
    content = read_torch_archive(path)
    tensors = _tensors_of(content, path)
    check_tensors(tensors, path)
    net: Literal["generator", "discriminator"]
    if is_discriminator(tensors):
        net = "discriminator"
    else:
        if not is_generator(tensors):
            refuse_others(tensors, path)
            raise CheckpointError(
                f"{path}: is not a SoVITS generator (no enc_p.text_embedding), nor a discriminator"
            )
        net = "generator"
    if tensors is content.get("model"):
        return _resume_file(path, net, tensors, content)
    form: Form = "pretrained" if net == "discriminator" or has_posterior(tensors) else "exported"
    if tensors is content:
        return UpstreamFile(path, net, form, tensors, version_code=code)
    config = {} if content.get("config") is None else content["config"]
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its configuration is damaged; copy or download it again")
    stated = content.get("info")
    info = stated if isinstance(stated, str) else ""
    return UpstreamFile(path, net, form, tensors, config, info, version_code=code)


def _tensors_of(content: Any, path: Path) -> dict[str, Any]:
    """Return the table of weights in a file of any form.

    Raises:
        CheckpointError: there is none.
    """
    tables = content if isinstance(content, dict) else {}
    found = tables.get("model" if "optimizer" in tables else "weight")
    if isinstance(found, dict):
        return found
    # A bare state dict, as written by scripts that merge voices.
    if is_generator(tables) or is_discriminator(tables):
        return tables
    for table in (tables, *tables.values()):
        if isinstance(table, dict):
            refuse_others(table, path)
    holds = _quote(tables) if isinstance(content, dict) else "something else"
    raise CheckpointError(
        f"{path}: is not a file of GPT-SoVITS's SoVITS stage, which holds `weight` or `model`; "
        f"it holds {holds or 'nothing'}"
    )


def _quote(content: dict[Any, Any]) -> str:
    """Quote the first keys of a table."""
    names = [str(name)[:_MAX_NAME_CHARS] for name in list(content)[:_MAX_QUOTED]]
    return ", ".join(names) + (", ..." if len(content) > _MAX_QUOTED else "")


def _resume_file(
    path: Path, net: Literal["generator", "discriminator"], tensors: dict[str, Any], content: Any
) -> UpstreamFile:
    iteration, rate, optimizer = (
        content.get(key) for key in ("iteration", "learning_rate", "optimizer")
    )
    is_whole = isinstance(optimizer, dict) and {"state", "param_groups"} <= set(optimizer)
    is_counted = type(iteration) is int and 0 <= iteration <= _MAX_EPOCHS
    if not is_counted or type(rate) is not float or not is_whole:
        raise CheckpointError(
            f"{path}: is damaged, it lacks iteration, learning_rate or the optimizer's state; "
            "take an earlier file of that run"
        )
    return UpstreamFile(
        path,
        net,
        "resume",
        tensors,
        _config_beside(path),
        info=f"{iteration}epoch",
        iteration=iteration,
        learning_rate=float(rate),
        optimizer=optimizer,
    )


def _config_beside(path: Path) -> dict[str, Any]:
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        beside = folder / CONFIG_FILE
        if beside.is_file():
            values = read_json_table(beside)
            if isinstance(values.get("model"), Mapping):
                return values
    return {}
