"""Configuration: upstream's keys in and out."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mlx_vits.config import Config, ReducedDims
from mlx_vits.errors import CheckpointError
from tests.support.goldens import golden, values


def test_a_reduced_configuration_comes_back_as_it_was() -> None:
    theirs = values("sovits_v2", "config.json")
    ours = Config.read(golden("sovits_v2", "config.json")).to_dict()
    added = {"disc_width": 1.0}  # ours: upstream knows no discriminator width
    assert ours == theirs | {"reduced_dims": theirs["reduced_dims"] | added}


def test_defaults_are_upstreams_full_size_v2() -> None:
    config = Config.from_dict(values("full_v2", "meta.json")["config"])
    assert config.version == "v2"
    assert config.segment_frames == 32
    assert not config.is_reduced
    assert "reduced_dims" not in config.to_dict()
    assert dataclasses.replace(config, extra={}) == dataclasses.replace(Config(), extra={})


def test_keys_nobody_knows_are_kept() -> None:
    given = {"model": {"version": "v2", "lora_rank": "32"}, "train": {"gpu": "0"}, "name": "x"}
    again = Config.from_dict(given).to_dict()
    assert (again["model"]["lora_rank"], again["train"]["gpu"], again["name"]) == ("32", "0", "x")


def test_sizes_follow_the_version() -> None:
    assert Config.from_dict({"version": "v1"}).reduced_dims == ReducedDims.full_size("v1")
    assert Config.from_dict({"model": {"version": "v2Pro"}}).reduced_dims.sv_dim == 20480


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": {"version": "v9"}}, "version 'v9' is not supported"),
        ({"model": {"hidden_channels": "many"}}, "hidden_channels is 'many'"),
        ({"model": {"hidden_channels": None}}, "hidden_channels is None"),
        ({"model": {"upsample_rates": [10, "8"]}}, "upsample_rates"),
        ({"train": []}, "`train` of the configuration is not a table"),
        ({"reduced_dims": {"ssl_width": 3}}, "unknown keys ssl_width"),
        ({"model": {"upsample_rates": [10, 8]}}, "upsampling lists differ in length"),
        ({"model": {"n_heads": 5}}, "n_heads does not divide"),
        ({"model": {"n_layers": 0}}, "n_layers is 0"),
        ({"model": {"upsample_initial_channel": 16}}, "too small to be halved"),
    ],
)
def test_what_does_not_fit_is_named(given: dict, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Config.from_dict(given, source="some.json")


def test_a_file_that_is_no_configuration_is_named(tmp_path) -> None:
    for name, content in (("broken.json", "{"), ("list.json", json.dumps([1]))):
        (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match=name):
            Config.read(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Config.read(tmp_path / "nowhere.json")
