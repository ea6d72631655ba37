"""A Hugging Face hub on this machine, for the tests of `mlx-vits download`.

It answers as huggingface.co does: a large file (anything but JSON) is a redirect to another host,
which serves parts of it on request; `X-Linked-Etag` states its SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from mlx_vits.checkpoints.download import REPOSITORY
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from tests.support.bert import bert_tensors, write_bert

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEAKER = "sv/pretrained_eres2netv2w24s4ep4.ckpt"
ENCODER = "chinese-hubert-base/pytorch_model.bin"
GENERATORS = {"v2": "gsv-v2final-pretrained/s2G2333k.pth", "v2Pro": "v2Pro/s2Gv2Pro.pth"}
GPTS = {
    "v2": "gsv-v2final-pretrained/s1bert25hz-5kh-longer-epoch=12-step=369668.ckpt",
    "v2Pro": "s1v3.ckpt",
}
BERT = "chinese-roberta-wwm-ext-large/pytorch_model.bin"
DISCRIMINATORS = {"v2": "gsv-v2final-pretrained/s2D2333k.pth", "v2Pro": "v2Pro/s2Dv2Pro.pth"}


def upstream_files(base: Path, version: str) -> dict[str, bytes]:
    """A base's models as upstream publishes them, in fp16: path in the repository to bytes."""
    scratch = base / "scratch.pth"

    def archive(content: Any) -> bytes:
        write_torch_archive(scratch, content)
        return scratch.read_bytes()

    def halves(name: str) -> dict[str, np.ndarray]:
        tensors = read_tensors(base / name).tensors
        return {key: np.array(tensor).astype(np.float16) for key, tensor in tensors.items()}

    config = json.loads((base / "config.json").read_text())
    generator = {"weight": halves("generator.safetensors"), "config": config, "info": "pretrained"}
    files = {
        GENERATORS[version]: archive(generator),
        DISCRIMINATORS[version]: archive({"weight": halves("discriminator.safetensors")}),
        "chinese-hubert-base/config.json": (base / "content_encoder/config.json").read_bytes(),
        ENCODER: archive(halves("content_encoder/weights.safetensors")),
    }
    table = np.zeros((732, 4), np.float16)
    gpt = {"weight": {"model.ar_text_embedding.word_embeddings.weight": table}, "config": {}}
    files[GPTS[version]] = archive(gpt)
    bert = write_bert(base / "bert", vocabulary_file="tokenizer.json")
    files |= {f"{Path(BERT).parent}/{path.name}": path.read_bytes() for path in bert.iterdir()}
    files[BERT] = archive({n: array.astype(np.float16) for n, array in bert_tensors().items()})
    if version == "v2Pro":
        files[SPEAKER] = np.random.default_rng(0).bytes(5000)
    return files


class Request(NamedTuple):
    """One that the server got; a header that it had not is ""."""

    method: str
    path: str
    range: str
    token: str


class HubServer:
    """A hub with one repository, at `address` while the context lasts.

    Attributes:
        files: path in the repository to bytes.
        requests: all that came.
        cut: path to the bytes of an answer after which the connection breaks, once; from then on
            the file is busy (503) until the entry is taken away.
        status: answers everything with this code, where it is set.
        states_checksums: whether the headers tell SHA-256.
        wrong_checksums: paths whose stated SHA-256 is another file's.
        answers_ranges: False sends whole files only.
        is_hub: False answers as any web server would.
        compresses: whether it sends files gzipped, asked or not.
        states_lengths: whether its answers tell their length.
        sends: path to what is sent in the file's place, which is announced all the same.
        content_type: of everything, "" for none.
        location: where every large file is redirected to, "" for its own address.
        announces: path to the size that the redirect states, where it is another.
        is_busy_once_cut: False serves a file again after its connection broke.
        interrupt: path to the bytes of an answer after which this process gets a Ctrl-C, once.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = dict(files)
        self.requests: list[Request] = []
        self.cut: dict[str, int] = {}
        self.status: int | None = None
        self.states_checksums = self.answers_ranges = self.is_hub = True
        self.wrong_checksums: set[str] = set()
        self.compresses, self.states_lengths, self.is_busy_once_cut = False, True, True
        self.sends: dict[str, bytes] = {}
        self.content_type = self.location = ""
        self.announces: dict[str, int] = {}
        self.interrupt: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def gets(self, path: str) -> list[str]:
        """The ranges asked of a file's bytes, "" for the whole, in order."""
        return [r.range for r in self.requests if (r.method, r.path) == ("GET", f"/cdn/{path}")]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None: ...

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = (self.headers.get(name, "") for name in ("Range", "Authorization"))
        self.hub.requests.append(Request(self.command, path, *headers))
        prefix = f"/{REPOSITORY}/resolve/"
        if self.hub.status is not None:
            self._answer(self.hub.status)
        elif path.startswith("/cdn/"):
            self._send(path.removeprefix("/cdn/"))
        elif not path.startswith(prefix):
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        else:
            self._resolve(*path.removeprefix(prefix).split("/", 1))

    def _resolve(self, revision: str, path: str) -> None:
        if revision not in ("main", COMMIT):
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        content = self.hub.files.get(path)
        if content is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": COMMIT} if self.hub.is_hub else {}
        if path.endswith(".json"):
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            self._answer(200, headers | {"ETag": f'"{git}"'}, content)
            return
        size = self.hub.announces.get(path, len(content))
        stated = b"another" if path in self.hub.wrong_checksums else content
        checksum = hashlib.sha256(stated).hexdigest()
        etag = f'"{checksum if self.hub.states_checksums else checksum[:32]}"'
        # Another host, as upstream's.
        location = self.hub.location or f"http://localhost:{self.hub.port}/cdn/{path}"
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(size)}
        self._answer(302, headers | {"Location": location})

    def _send(self, path: str) -> None:
        content, wanted = self.hub.files[path], self.headers.get("Range", "")
        content = self.hub.sends.get(path, content)
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        start = start if self.hub.answers_ranges else 0
        headers = {}
        if self.hub.compresses:
            headers["Content-Encoding"], content = "gzip", gzip.compress(content)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if count := self.hub.interrupt.pop(path, 0):
            self._answer(200, headers, content, count)
            time.sleep(0.3)  # for what was sent to arrive
            os.kill(os.getpid(), signal.SIGINT)
            return
        limit = self.hub.cut.get(path)
        if limit == 0:
            self._answer(503)
            return
        if limit is not None and self.hub.is_busy_once_cut:
            self.hub.cut[path] = 0
        elif limit is not None:
            del self.hub.cut[path]
        self._answer(206 if start else 200, headers, content[start:], limit)

    def _answer(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        content: bytes = b"",
        until: int | None = None,
    ) -> None:
        """Answers; with `until`, only so many bytes of the content come before the end."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.hub.content_type:
            self.send_header("Content-Type", self.hub.content_type)
        if self.hub.states_lengths or self.command == "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:until])
            self.wfile.flush()
