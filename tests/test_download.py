"""`mlx-vits download`, against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.checkpoints.base import find_base
from mlx_vits.checkpoints.bert_file import find_bert, read_bert
from mlx_vits.checkpoints.download import REPOSITORY, download_base
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.cli import app
from mlx_vits.errors import CheckpointError
from mlx_vits.system.locks import WriterLock
from tests.support.bert import write_bert
from tests.support.goldens import ROOT
from tests.support.hub_server import (
    BERT,
    COMMIT,
    DISCRIMINATORS,
    ENCODER,
    GENERATORS,
    GPTS,
    SPEAKER,
    HubServer,
    upstream_files,
)
from tests.support.tiny import RATE, TEXTS, hum, make_base

pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")
from huggingface_hub import constants

GENERATOR = GENERATORS["v2"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: Any) -> dict[str, dict[str, bytes]]:
    """What upstream publishes, by version."""
    root = tmp_path_factory.mktemp("published")
    found = {}
    for version in ("v2", "v2Pro"):
        make_base(root / version, version=version)
        found[version] = upstream_files(root / version, version)
    return found


@pytest.fixture
def hub(
    published: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path / "weights"))
    with HubServer(published["v2"] | published["v2Pro"]) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def _run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["download", *map(str, arguments)])


def _refused(words: str, *arguments: Any) -> None:
    """The command fails with one sentence, and nothing lies under the base's name."""
    done = _run(*(arguments or ("v2",)))
    assert done.exit_code == 1, done.output
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert words in sentence, sentence
    assert "Traceback" not in done.output
    assert not any(p.name.startswith("v2") for p in _weights().glob("*"))
    assert not list(_weights().glob(".*.new"))


def _weights() -> Path:
    return Path(os.environ["MLX_VITS_HOME"])


def _assert_same(ours: Path, theirs: bytes, tmp_path: Path, key: str | None = "weight") -> None:
    """A safetensors file holds an archive's tensors: names, precision and every bit."""
    (tmp_path / "theirs.pth").write_bytes(theirs)
    content = read_torch_archive(tmp_path / "theirs.pth")
    expected = content[key] if key else content
    found = read_tensors(ours).tensors
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert np.array(found[name]).dtype == array.dtype == np.float16, name
        assert np.array(found[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("version", ["v2", "v2Pro"])
def test_a_whole_download_is_a_base(version: str, hub: HubServer, tmp_path: Path) -> None:
    done = _run(version)
    assert done.exit_code == 0, done.output
    folder = _weights() / version
    assert {p.name for p in _weights().iterdir()} == {version, "bert"}  # the originals are gone
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    speaker = {"speaker_encoder/pretrained_eres2netv2w24s4ep4.ckpt"} if version != "v2" else set()
    assert names == speaker | {
        "checksums.json",
        "config.json",
        "content_encoder/config.json",
        "content_encoder/weights.safetensors",
        "discriminator.safetensors",
        "generator.safetensors",
        "gpt.ckpt",
    }
    files = hub.files
    _assert_same(folder / "generator.safetensors", files[GENERATORS[version]], tmp_path)
    _assert_same(folder / "discriminator.safetensors", files[DISCRIMINATORS[version]], tmp_path)
    encoder = folder / "content_encoder"
    _assert_same(encoder / "weights.safetensors", files[ENCODER], tmp_path, None)
    assert (encoder / "config.json").read_bytes() == files["chinese-hubert-base/config.json"]
    for name in speaker:
        assert (folder / name).read_bytes() == files[SPEAKER]
    assert (folder / "gpt.ckpt").read_bytes() == files[GPTS[version]]
    assert find_base(version).gpt == folder / "gpt.ckpt"
    voice = mlx_vits.load(version)
    assert (voice.version, voice.info) == (version, "pretrained")
    assert find_base(version).discriminator == folder / "discriminator.safetensors"
    if version == "v2":
        spoken = voice.convert(hum(1.5), RATE, TEXTS[0])
        assert len(spoken) > RATE
        assert np.isfinite(spoken).all()


def test_checksums_say_where_every_file_came_from(hub: HubServer) -> None:
    said: list[str] = []
    folder = download_base("v2Pro", say=said.append)
    records = json.loads((folder / "checksums.json").read_text())["files"]
    paths = [GENERATORS["v2Pro"], DISCRIMINATORS["v2Pro"]]
    paths += ["chinese-hubert-base/config.json", ENCODER, SPEAKER, GPTS["v2Pro"]]
    assert [record["path"] for record in records] == paths
    for record in records:
        content = hub.files[record["path"]]
        assert (record["repository"], record["revision"]) == (REPOSITORY, COMMIT)
        assert record["size"] == len(content)
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert (folder / record["becomes"]).is_file()
    paths_of_bert = [path for path in hub.files if path.startswith("chinese-roberta")]
    total = sum(len(hub.files[path]) for path in paths + paths_of_bert) / 1e6
    assert said[0] == f"9 files, {total:.1f} MB in all"
    assert [line.split("  ")[1] for line in said[1:7]] == paths  # a line for each
    # The first file's commit is the one that all come from.
    asked = [r.path.split("/")[4] for r in hub.requests if r.path.startswith(f"/{REPOSITORY}/")]
    assert asked[0] == "main"
    assert set(asked[1:]) == {COMMIT}


def test_a_cut_download_goes_on_where_it_stopped(hub: HubServer) -> None:
    half = len(hub.files[GENERATOR]) // 2
    hub.cut[GENERATOR] = half
    _refused(", then run the same command again: it goes on where it stopped")
    assert hub.gets(GENERATOR)[0] == ""  # newer libraries also try once more by themselves
    (partial,) = _weights().glob(".v2.download/**/*.incomplete")
    assert partial.read_bytes() == hub.files[GENERATOR][: partial.stat().st_size]
    before = partial.stat().st_size
    assert before == half
    hub.cut.clear()
    hub.requests.clear()
    done = _run("v2")
    assert done.exit_code == 0, done.output
    assert "goes on at 0.1 MB" in done.stdout
    assert hub.gets(GENERATOR) == [f"bytes={before}-"]  # the second run asked for the rest alone
    assert mlx_vits.load("v2").version == "v2"


def test_ctrl_c_keeps_what_came(hub: HubServer) -> None:
    hub.interrupt[DISCRIMINATORS["v2"]] = 3000
    done = _run("v2")
    assert done.exit_code == 130
    assert "run the same command again: it goes on where it stopped" in done.stderr
    done = _run("v2")
    assert done.exit_code == 0, done.output
    assert len(hub.gets(GENERATOR)) == 1  # whole by then: not asked for again
    assert "s2G2333k.pth" in done.stdout
    assert "fetched before" in done.stdout
    assert hub.gets(DISCRIMINATORS["v2"]) == ["", "bytes=3000-"]


def test_a_server_without_ranges_sends_the_whole(hub: HubServer) -> None:
    hub.cut[GENERATOR], hub.answers_ranges = 20000, False
    _refused("s2G2333k.pth")
    hub.cut.clear()
    for _ in range(2):  # an old library notices only afterwards, and the next run starts afresh
        done = _run("v2")
        if done.exit_code == 0:
            break
    assert done.exit_code == 0, done.output


def test_a_wrong_checksum_is_refused_and_fetched_anew(hub: HubServer) -> None:
    hub.wrong_checksums.add(GENERATOR)
    _refused("s2G2333k.pth: arrived damaged, its SHA-256 is not the one")
    assert not list(_weights().glob(".v2.download/**/s2G*"))
    hub.wrong_checksums.clear()
    assert _run("v2").exit_code == 0
    assert hub.gets(GENERATOR) == ["", ""]


def test_a_damaged_file_without_a_stated_checksum_is_fetched_anew(hub: HubServer) -> None:
    good = hub.files[GENERATOR]
    hub.states_checksums = False
    hub.files[GENERATOR] = good[:-100] + bytes(100)
    _refused("s2G2333k.pth: is damaged or cut short")
    hub.files[GENERATOR] = good
    assert _run("v2").exit_code == 0
    assert hub.gets(GENERATOR) == ["", ""]
    assert len(hub.gets(ENCODER)) == 1


def test_another_version_inside_is_refused(hub: HubServer) -> None:
    hub.files[GENERATOR] = hub.files[GENERATORS["v2Pro"]]
    _refused("s2G2333k.pth: is a v2Pro generator, not v2; name another commit")


def test_another_discriminator_is_refused(hub: HubServer) -> None:
    hub.files[DISCRIMINATORS["v2"]] = hub.files[DISCRIMINATORS["v2Pro"]]
    _refused("s2D2333k.pth: is a discriminator of v2Pro")


def test_a_generator_that_cannot_be_trained_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "g.pth").write_bytes(hub.files[GENERATOR])
    content = read_torch_archive(tmp_path / "g.pth")
    content["weight"] = {n: a for n, a in content["weight"].items() if "enc_q" not in n}
    write_torch_archive(tmp_path / "g.pth", content)
    hub.files[GENERATOR] = (tmp_path / "g.pth").read_bytes()
    _refused("s2G2333k.pth: lacks enc_q")


def test_an_encoder_in_the_old_format_is_named_and_the_rest_kept(hub: HubServer) -> None:
    good = hub.files[ENCODER]
    hub.files[ENCODER] = bytes.fromhex("8002 8a0a 6cfc9c46f9206aa85019 2e") + bytes(3000)
    _refused("pytorch_model.bin: is in PyTorch's old non-zip format")
    assert list(_weights().glob(".v2.download/**/s2G2333k.pth"))
    hub.files[ENCODER] = good
    assert _run("v2").exit_code == 0
    assert len(hub.gets(GENERATOR)) == 1


def test_what_the_server_refuses_is_a_sentence(hub: HubServer) -> None:
    _refused("knows no revision 'old' of it; leave --revision out", "v2", "--revision", "old")
    hub.status = 401
    _refused(f"s2G2333k.pth: 127.0.0.1:{hub.port} refuses access (401); renew or remove")
    hub.status = 403
    _refused("refuses access (403); renew or remove the token")
    hub.status = 429
    _refused("is asked too often from here (429); wait some minutes, or send a token")
    for hub.status in (500, 503):
        _refused(f"answers with an error ({hub.status}); wait a little, then run the same command")
    hub.status, hub.is_hub = None, False
    _refused("does not answer as the Hugging Face hub does; check HF_ENDPOINT")
    hub.is_hub = True
    del hub.files[GENERATOR]
    _refused(f"{GENERATOR}: 127.0.0.1:{hub.port} has no such file at revision 'main'")
    assert not list(_weights().glob("*"))
    assert not list(_weights().glob(".*"))


def test_no_server_at_all_is_a_sentence(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        _refused(f"{REPOSITORY}/{GENERATOR}: cannot be fetched from {address} (")
        _refused("check the connection, or name a mirror in HF_ENDPOINT, then run the same command")
    for address in ("mirror", "ftp://mirror", "http://", "http://[", "http://mirror:port"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        _refused("which is no address; unset it, or write it like https://huggingface.co")


def test_a_token_goes_to_the_hub_alone(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download_base("v2", say=lambda text: None)
    tokens = {(r.path.startswith("/cdn/"), r.token) for r in hub.requests}
    assert tokens == {(False, "Bearer hf_secret"), (True, "")}


def test_offline_mode_is_a_sentence(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MLX_VITS_HOME": str(tmp_path / "w")}
    command = [sys.executable, "-c", "from mlx_vits.cli import main; main()", "download", "v1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {REPOSITORY}/s2G488k.pth: cannot be fetched in offline mode; unset "
        "HF_HUB_OFFLINE, then run the same command again: it goes on where it stopped\n"
    )


def test_a_full_disk_is_a_sentence(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        _refused("and its disk has 0.0 MB free; free some space, or name a folder")
    assert not hub.gets(GENERATOR)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_a_disk_that_fills_meanwhile_is_a_sentence(hub: HubServer) -> None:
    partial = _weights() / ".v2.download" / COMMIT[:12] / f"{GENERATOR}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    _refused("s2G2333k.pth: cannot be written (No space left on device); free some space, then")


def test_no_byte_more_than_announced_is_written(hub: HubServer) -> None:
    hub.sends[GENERATOR] = hub.files[GENERATOR] + bytes(100)
    for hub.states_lengths in (True, False):
        _refused(f"is longer than the {len(hub.files[GENERATOR]):,} bytes that it may have; check")
        kept = _weights().glob(".v2.download/**/*.incomplete")
        assert sum(path.stat().st_size for path in kept) == 0
    hub.sends.clear()
    assert _run("v2").exit_code == 0


def test_what_is_compressed_unasked_is_refused(hub: HubServer) -> None:
    """A few bytes of gzip may be gigabytes of zeros."""
    hub.compresses = True
    _refused("comes compressed (gzip), which was not asked for; check the proxy, or name another")
    assert not list(_weights().glob(".v2.download/**/*.incomplete"))


def test_a_file_that_ends_early_is_kept_and_gone_on_from(hub: HubServer) -> None:
    whole = hub.files[GENERATOR]
    hub.sends[GENERATOR] = whole[:-100]
    _refused(f"ended after {len(whole) - 100:,} of {len(whole):,} bytes; wait a little, then run")
    hub.sends.clear()
    assert _run("v2").exit_code == 0
    assert hub.gets(GENERATOR) == ["", f"bytes={len(whole) - 100}-"]


def test_a_connection_that_breaks_is_taken_up_again(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_vits.checkpoints.hub._PAUSE_SECONDS", 0)
    hub.cut[GENERATOR] = 20000
    hub.is_busy_once_cut = False
    done = _run("v2")
    assert done.exit_code == 0, done.output
    assert hub.gets(GENERATOR) == ["", "bytes=20000-"]


def test_a_web_page_in_place_of_a_file_is_named(hub: HubServer) -> None:
    hub.content_type = "text/html; charset=utf-8"
    hub.sends[GENERATOR] = b"<!DOCTYPE html><html>Please log in</html>"
    _refused("is answered with a web page; check HF_ENDPOINT, the proxy, and whether this network")


@pytest.mark.parametrize("scheme", ["ftp", "file"])
def test_a_redirect_to_another_scheme_is_refused(scheme: str, hub: HubServer) -> None:
    hub.location = f"{scheme}://127.0.0.1/etc/passwd"
    _refused("redirects to where nothing can be fetched (")
    _refused("; check the proxy, or name another server in HF_ENDPOINT")


def test_a_size_that_no_model_has_is_refused(hub: HubServer) -> None:
    hub.announces[GENERATOR] = 10**12
    _refused("announces 1,000,000,000,000 bytes, which no such file has; check the proxy")
    assert not hub.gets(GENERATOR)


def test_two_at_once_do_not_mix(hub: HubServer) -> None:
    stage = _weights() / ".v2.download"
    stage.mkdir(parents=True)
    with WriterLock(stage):
        _refused("has been writing there since")
    assert not hub.gets(GENERATOR)


def test_a_base_that_is_there_is_left_alone(hub: HubServer) -> None:
    assert _run("v2").exit_code == 0
    folder = _weights() / "v2"
    before = (folder / "generator.safetensors").stat().st_mtime_ns
    hub.requests.clear()
    done = _run("v2")
    assert done.exit_code == 0
    assert "the v2 base is there already; --force fetches it again" in done.stdout
    assert not hub.requests
    assert (folder / "generator.safetensors").stat().st_mtime_ns == before
    assert _run("v2", "--force").exit_code == 0
    assert (folder / "generator.safetensors").stat().st_mtime_ns > before
    hub.status = 500
    assert _run("v2", "--force").exit_code == 1
    assert mlx_vits.load("v2").version == "v2"  # a failed renewal takes nothing away


def test_the_bert_that_comes_with_a_base_reads(hub: HubServer, tmp_path: Path) -> None:
    assert _run("v2").exit_code == 0
    folder = find_bert("v2")
    names = {"config.json", "tokenizer.json", "weights.safetensors", "checksums.json"}
    assert {path.name for path in folder.iterdir()} == names
    theirs = write_bert(tmp_path / "theirs", vocabulary_file="tokenizer.json")
    (theirs / "pytorch_model.bin").write_bytes(hub.files[BERT])
    assert np.array_equal(read_bert(folder)("你好"), read_bert(theirs)("你好"))
    # Half precision, as it came, without the two layers that are not read.
    kept = read_tensors(folder / "weights.safetensors").tensors
    assert str(kept["encoder.layer.1.output.dense.bias"].dtype) == "mlx.core.float16"
    assert "encoder.layer.2.output.dense.bias" not in kept
    records = json.loads((folder / "checksums.json").read_text())["files"]
    assert [record["path"] for record in records][-1] == BERT


def test_an_older_base_gets_only_what_it_lacks(hub: HubServer) -> None:
    assert _run("v2", "--no-bert").exit_code == 0
    folder = _weights() / "v2"
    assert not (_weights() / "bert").exists()
    (folder / "gpt.ckpt").unlink()
    records = json.loads((folder / "checksums.json").read_text())["files"]
    (folder / "checksums.json").write_text(json.dumps({"files": records[:-1]}))
    before = (folder / "generator.safetensors").stat().st_mtime_ns
    hub.requests.clear()
    done = _run("v2", "--no-bert")
    assert done.exit_code == 0, done.output
    assert "the GPT of the v2 base is ready" in done.stdout
    assert (folder / "gpt.ckpt").read_bytes() == hub.files[GPTS["v2"]]
    assert (folder / "generator.safetensors").stat().st_mtime_ns == before
    assert json.loads((folder / "checksums.json").read_text())["files"] == records
    assert not hub.gets(GENERATOR)
    hub.requests.clear()
    done = _run("v2")  # now with the BERT, and with nothing else
    assert done.exit_code == 0, done.output
    assert "the v2 base is there already" in done.stdout
    assert "the Chinese BERT is ready" in done.stdout
    assert not hub.gets(GPTS["v2"])
    assert len(hub.gets(BERT)) == 1
    hub.requests.clear()
    assert _run("v2Pro").exit_code == 0
    assert not hub.gets(BERT)  # all bases share one
    assert not list(_weights().glob(".*"))


def test_a_cut_bert_goes_on_and_the_base_is_there(hub: HubServer) -> None:
    hub.cut[BERT] = 9000
    done = _run("v2")
    assert done.exit_code == 1
    assert "then run the same command again" in done.stderr
    assert mlx_vits.load("v2").version == "v2"
    assert not (_weights() / "bert").exists()
    hub.cut.clear()
    hub.requests.clear()
    assert _run("v2").exit_code == 0
    assert hub.gets(BERT) == ["bytes=9000-"]
    assert not hub.gets(GENERATOR)


def test_what_is_no_gpt_or_bert_is_refused(hub: HubServer) -> None:
    good = hub.files[GPTS["v2"]]
    hub.files[GPTS["v2"]] = hub.files[GENERATOR]
    _refused("s1bert25hz-5kh-longer-epoch=12-step=369668.ckpt: is no T2S model; name another")
    hub.files[GPTS["v2"]] = good
    hub.files[BERT] = hub.files[ENCODER]
    done = _run("v2")
    assert done.exit_code == 1
    assert "pytorch_model.bin: is not a BERT" in done.stderr
    assert not (_weights() / "bert").exists()


def test_a_bert_of_the_users_is_kept(hub: HubServer) -> None:
    own = _weights() / "bert"
    _weights().mkdir()
    write_bert(own)
    done = _run("v2")
    assert done.exit_code == 0, done.output
    assert not hub.gets(BERT)
    done = _run("v2", "--force")  # vocab.txt is not what a download brings
    assert "holds something else than the Chinese BERT; move it away, or leave" in done.stderr
    (own / "config.json").unlink()
    assert "holds something else than the Chinese BERT" in _run("v2").stderr
    assert _run("v2", "--no-bert").exit_code == 0


def test_nothing_of_the_users_is_replaced(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "diary.txt").write_text("dear diary")
    for options in ([], ["--force"]):
        done = _run("v2", "--output", folder, *options)
        assert "holds something else; choose another with --output" in done.stderr
    assert (folder / "diary.txt").read_text() == "dear diary"
    (folder / "diary.txt").rename(tmp_path / "diary.txt")
    assert _run("v2", "--output", folder).exit_code == 0  # an empty folder is taken
    assert mlx_vits.load(folder).version == "v2"
    (tmp_path / "diary.txt").rename(folder / "diary.txt")
    assert "also holds diary.txt" in _run("v2", "--output", folder, "--force").stderr
    assert "holds a v2 base" in _run("v2Pro", "--output", folder).stderr
    (folder / "discriminator.safetensors").unlink()
    done = _run("v2", "--output", folder)
    assert "lacks discriminator.safetensors; --force fetches" in done.stderr
    done = _run("v2", "--output", folder / "diary.txt")
    assert "is not a folder that can be read (Not a directory)" in done.stderr


def test_without_the_library_the_cure_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    _refused("is not installed; run `pip install 'huggingface_hub>=0.30'`")


@pytest.mark.parametrize("version", ["v1", "v2", "v2Pro", "v2ProPlus"])
def test_a_missing_base_names_the_command(version: str, hub: HubServer) -> None:
    for load in (mlx_vits.load, find_base):
        with pytest.raises(CheckpointError, match=f"`mlx-vits download {version}`$"):
            load(version)


def test_an_unknown_version_is_a_sentence(hub: HubServer) -> None:
    _refused("v4: cannot be downloaded; choose v1, v2, v2Pro, v2ProPlus", "v4")
