"""Compress a model that does not fit into memory: one layer at a time from safetensors to the device and back to disk.

The next layer is read, and the one before is written, while this one is at work. Every finished layer is a file beside
the output folder, so a run that was stopped goes on at the first layer that is missing.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt import parallel
from modegpt.allocate import Ranks
from modegpt.checkpoint.folder import check_output, save_checkpoint
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.families.dialects import Rewriting, rewriting
from modegpt.files import write_whole
from modegpt.inference import check_tokens, tokens_sha256
from modegpt.machine import Stopwatch
from modegpt.measure import Curves
from modegpt.pipeline import compress
from modegpt.report import LayerReport, Report, count_parameters
from modegpt.sources import model_folder
from modegpt.sources.folders import (
    ADAPTER,
    ModelFolder,
    empty_model,
    inspect,
    read_config,
    read_generation_config,
    weight_files,
)
from modegpt.sources.hub import clear_errors, quiet_transformers

LOCK = "lock"

READERS = 4  # threads: one alone, which waits for every page, keeps neither a disk nor a GPU busy
KNOWN = {"scores", "measured", "curves"}  # found before the first layer is compressed, and kept for a second try


class LayerFiles:
    """The tensors of a Hugging Face folder, and its layers one at a time.

    Args:
        found: what the folder holds.
        source: how the tensors of the model are made of those.
        device, dtype: where layers go, and as what.

    `bytes_read` so far, and the seconds that the work `waited` for layers.
    """

    def __init__(self, found: ModelFolder, source: Rewriting, device: torch.device, dtype: torch.dtype) -> None:
        self.found, self.source, self.device, self.dtype = found, source, device, dtype
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(READERS)
        self.bytes_read, self.waited = 0, 0.0

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Tensors on the device, of the shapes and under the names of the module that is to have them.

        Args:
            names: {name in the result: name in the model}.
        """
        places = {part: self.found.names[part] for key in names.values() for part in self.source.parts[key]}
        stored = self.found.tensors.read(sorted(set(places.values())))

        def bring(key: str) -> Tensor:
            return self._bring(self.source.make(key, lambda part: stored[places[part]].to(self.dtype)))

        found = dict(zip(names, self.pool.map(bring, names.values()), strict=True))
        if self.copies:
            self.copies.synchronize()
        self.bytes_read += sum(tensor.nbytes for tensor in stored.values())
        return found

    def resident(self, layers: nn.ModuleList, prefix: str) -> Iterator[tuple[int, nn.Module]]:
        """Yield (index, layer) with its weights on the device, read while the layer before was at work.

        A layer is emptied again when the next one is asked for; this rank's own not before all ranks have theirs.
        """
        own: nn.Module | None = None
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._layer, layers, prefix, 0)
            for index, layer in enumerate(layers):
                start = time.perf_counter()
                with clear_errors(str(self.found.tensors.folder)):
                    layer.load_state_dict(coming.result(), assign=True)
                self.waited += time.perf_counter() - start
                if index + 1 < len(layers):
                    coming = reader.submit(self._layer, layers, prefix, index + 1)
                yield index, layer
                own = layer if parallel.mine(index) else own
                if own is not layer:
                    layer.to("meta")
                if own and parallel.owner(index) == parallel.size() - 1:
                    own.to("meta")
                    own = None

    def _layer(self, layers: nn.ModuleList, prefix: str, index: int) -> dict[str, Tensor]:
        return self.read({name: f"{prefix}.{index}.{name}" for name, _ in layers[index].named_parameters()})

    def _bring(self, tensor: Tensor) -> Tensor:
        if self.copies is None:
            return tensor.to(self.device)
        target = torch.empty_like(tensor, device=self.device)
        self.copies.wait_stream(torch.cuda.default_stream(self.device))  # its memory may still be in use there
        with torch.cuda.stream(self.copies):
            return target.copy_(tensor.pin_memory(), non_blocking=True)


class LayerWriter:
    """Writes finished layers to the folder of unfinished work while the next one is made; at most one waits.

    A context: whatever ends it, the layer that is being written is whole. `bytes_written` counts the finished files.

    Args:
        work: the folder.
        prefix: the name of the list of layers in the model.
        device: where the layers are.
    """

    def __init__(self, work: Path, prefix: str, device: torch.device) -> None:
        self.work, self.prefix, self.bytes_written = work, prefix, 0
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def add(self, index: int, small: nn.Module, report: LayerReport) -> None:
        """Take over a layer, which is empty then. Raises what `finish` does, of the layer before."""
        self.finish()
        state = {f"{self.prefix}.{index}.{name}": tensor for name, tensor in small.state_dict().items()}
        small.to("meta")
        if self.copies:
            self.copies.wait_stream(torch.cuda.current_stream(self.copies.device))
        self.writing = self.pool.submit(self._write, index, state, report)

    def finish(self) -> None:
        """Wait until all is written. Raises ModegptError if the disk refuses: full, read-only."""
        if self.writing:
            writing, self.writing = self.writing, None
            writing.result()

    def _write(self, index: int, state: dict[str, Tensor], report: LayerReport) -> None:
        file = layer_file(self.work, index)
        partial = file.with_suffix(".partial")
        if self.copies:
            with torch.cuda.stream(self.copies):  # into pinned memory, which torch keeps for the next layer
                host = {name: tensor.to("cpu", non_blocking=True) for name, tensor in state.items()}
            self.copies.synchronize()
            state.update(host)  # frees the GPU's
        try:
            save_file(state, partial, {"format": "pt"})
            write_whole(self.work / f"report-{index:03d}.json", json.dumps(asdict(report)))
            partial.rename(file)
        except (OSError, SafetensorError) as error:  # a full disk, for one
            raise ModegptError(
                f"layer {index} cannot be written to {self.work} ({error}): what is done stays"
            ) from error
        self.bytes_written += file.stat().st_size


def inspect_folder(folder: Path, dtype: torch.dtype) -> ModelFolder:
    """Config and headers of a folder, from which all that cannot be streamed is refused before a tensor is read.

    Raises:
        ModegptError: an unsupported model; an adapter; no safetensors, or tensors missing in them.
    """
    if (folder / ADAPTER).is_file():
        raise ModegptError(f"'{folder}' holds an adapter, which streaming does not apply: merge it into the model")
    with clear_errors(str(folder)), quiet_transformers():
        if not weight_files(folder):
            raise ModegptError(f"streaming reads safetensors, and {folder} holds none: load the model and save it once")
        found = inspect(folder, str(folder), dtype)
        family_of(rewriting(found.model).model)
        found.refuse_misfits(str(folder))
        found.model.generation_config = read_generation_config(folder, str(folder), found.model)
    return found


def open_model(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, LayerFiles, str]:
    """A model of which all but the layers is in memory, its files, and the name of its list of layers.

    Raises:
        ModegptError: as `inspect_folder`.
    """
    found = inspect_folder(folder, dtype)
    source = rewriting(found.model)
    model, files = source.model, LayerFiles(found, source, device, dtype)
    layers = family_of(model).layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    outside = [name for name in source.parts if not name.startswith(f"{prefix}.")]
    with clear_errors(str(folder)):
        model.load_state_dict(files.read({name: name for name in outside}), strict=False, assign=True)
    if model.config.tie_word_embeddings:
        head, words = model.get_output_embeddings(), model.get_input_embeddings()
        head.weight = words.weight = next(end.weight for end in (words, head) if not end.weight.is_meta)
    for module in model.modules():  # rotary frequencies are buffers, computed, not stored
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model, files, prefix


def outline(model: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model that would be compressed, without weights, as its config has it.

    Raises:
        ModegptError: another family, or an entry of the config that nobody knows; it is named.
    """
    with clear_errors(model), quiet_transformers():
        empty = rewriting(empty_model(read_config(model_folder(model), model), dtype)).model
        family_of(empty)
    return empty


@contextmanager
def advice_on_memory(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    tokens: Tensor | None = None,
    batch_size: int = 1,
    stream: bool = False,
) -> Iterator[None]:
    """Turn a GPU's lack of memory inside the block into a ModegptError that says what would fit.

    Estimates, in GiB, for calibration `tokens` (samples, length): weights; the hidden states of all tokens; four
    matrices of channels^2 in float64, of which the MLP's Gram matrix is one; the activations of a batch.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        empty = outline(model, dtype)
        family, config = family_of(empty), empty.config
        layers, shape = family.layers(empty), family.shape(empty)
        layer, whole = (sum(p.numel() * dtype.itemsize for p in m.parameters()) for m in (layers[0], empty))
        samples, length = tokens.shape if tokens is not None else (0, 0)
        hidden = samples * length * config.hidden_size * dtype.itemsize / parallel.size()
        batch = length * (4 * shape.mlp * dtype.itemsize + 16 * config.hidden_size)
        work = 4 * 8 * shape.mlp**2
        streamed = whole - (len(layers) - 2) * layer + work
        needs = {
            f"as asked, --batch-size {batch_size}": (streamed if stream else whole + work)
            + hidden
            + batch_size * batch,
            "--batch-size 1": whole + hidden + work + batch,
            "--stream --batch-size 1": streamed + hidden + batch,
            "--stream --offload-hidden --batch-size 1": streamed + batch,
        }
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
        listed = "; ".join(f"{way}: about {bytes_ / 2**30:.1f}" for way, bytes_ in needs.items())
        raise ModegptError(f"out of GPU memory ({total / 2**30:.0f} GiB in all). GiB needed {listed}") from error


def compress_folder(
    source: Path,
    target: Path,
    tokens: Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    facts: Mapping[str, object],
    hidden_on: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Report:
    """Compress the model in folder `source` into folder `target`, layer by layer, going on where a run was stopped.

    Args:
        tokens: calibration tokens (samples, length).
        facts: goes into the report beside what `compress` notes.
        hidden_on: where the hidden states of all tokens wait, "cpu" if they are too many for the device.
        options: as in `pipeline.compress`, with dense inputs.

    Raises:
        ModegptError: as `compress` and `open_model`; an unfinished run with other settings is in the way.
    """
    check_output(target, overwrite)
    if options.get("inputs", "dense") != "dense":
        raise ModegptError("streaming calibrates on dense inputs only")
    target = target.resolve()
    work = unfinished(target)
    progress = {"progress": options.pop("progress", False), "batch_size": options.pop("batch_size", 4)}
    model, files, prefix = open_model(source, device, dtype)
    check_tokens(model, tokens, "calibration tokens")
    settings = {"dtype": str(dtype), "tokens": tokens_sha256(tokens)}
    settings |= {name: str(value) for name, value in sorted(options.items())}
    parallel.check_same(settings)
    settings |= {"source": str(source.resolve()), "files": _stamps(source)}
    family = family_of(model)

    def note(name: str, found: Any) -> None:
        plain = found.tolist() if isinstance(found, Tensor) else asdict(found) if isinstance(found, Curves) else found
        _note(work, settings | {name: plain})

    def restore(index: int, small: nn.Module) -> None:
        stored = load_file(layer_file(work, index), device=str(device))
        small.load_state_dict({name.removeprefix(f"{prefix}.{index}."): t for name, t in stored.items()}, assign=True)

    with _alone(work):
        kept = _taken_up(work, settings)
        known: dict[str, Any] = {name: kept[name] for name in KNOWN & kept.keys()}
        if "scores" in known:
            known["scores"] = torch.tensor(known["scores"], dtype=torch.float64)
        if "curves" in known:
            known["curves"] = Curves(**known["curves"])
        done = parallel.gather(_done(work))[0]
        walking = {"resident": lambda layers: files.resident(layers, prefix), "hidden_on": hidden_on}
        clock = Stopwatch()
        try:
            with LayerWriter(work, prefix, device) as writer:
                _check_disk(work, model, options["ratio"], [layer_file(work, index) for index in done])
                hooks = {"on_known": note, "on_layer": writer.add, "restore": restore}
                small, report = compress(
                    model, tokens, known=known, done=done, walking=walking, walks=2, **hooks, **progress, **options
                )
                with clock("save"):
                    writer.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command goes on from here: what is done lies in {work}") from None
        except ModegptError:
            if parallel.rank() == 0 and _noted(work) == settings and not _done(work):
                shutil.rmtree(work)  # refused before any work: not in the way of the right command
            raise
        report.settings["layers_done_before"] = len(done)
        streamed = {"bytes_read": files.bytes_read, "bytes_written": writer.bytes_written, "waited": files.waited}
        report.streamed = parallel.gather(streamed)  # and now every rank has written its layers
        with clock("save"):
            if parallel.rank() == 0:
                shards = [layer_file(work, index) for index in range(len(family.layers(model)))]
                save_checkpoint(target, small, tokenizer, dict(facts) | report.to_dict(), overwrite, shards)
                shutil.rmtree(work)
        report.seconds["save"] = report.seconds.get("save", 0) + clock.seconds["save"]
    return report


def _check_disk(work: Path, model: PreTrainedModel, ratio: float, held: Iterable[Path]) -> None:
    """Raise ModegptError if the disk of `work` has no room for what is still to be written; `held` is there already.

    The estimate is of the parameters: those that no ratio touches, and of the layers' matrices what it leaves.
    """
    family = family_of(model)
    matrices = family.shape(model).total * len(family.layers(model))
    needed = int((count_parameters(model) - ratio * matrices) * model.dtype.itemsize)
    needed -= sum(file.stat().st_size for file in held)
    free = parallel.gather(shutil.disk_usage(work).free)[0]  # one number, lest ranks disagree
    if needed > free:
        sizes = [f"{count:,} bytes ({count / 2**30:.1f} GiB)" for count in (needed, free)]
        raise ModegptError(f"the disk of {work.parent} is too small: about {sizes[0]} are needed, {sizes[1]} are free")


def unfinished(target: Path) -> Path:
    """The folder, beside `target`, where finished layers lie until all are there."""
    return target.with_name(f".{target.name}.unfinished")


def layer_file(work: Path, index: int) -> Path:
    """A finished layer in that folder."""
    return work / f"layer-{index:03d}.safetensors"


def _done(work: Path) -> dict[int, LayerReport]:
    """The reports of the first layers that are finished; what lies behind a gap is made again."""
    found: dict[int, LayerReport] = {}
    while layer_file(work, len(found)).is_file():
        entries = json.loads((work / f"report-{len(found):03d}.json").read_text())
        found[len(found)] = LayerReport(**entries | {"ranks": Ranks(**entries["ranks"])})
    return found


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """The folder of unfinished work, made if need be, for one run at a time (rank 0 holds it for all)."""
    if parallel.rank() > 0:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    if strange := sorted({path.name for path in work.iterdir()} - {LOCK}) if _noted(work) is None else []:
        raise ModegptError(f"{work} is in the way: it holds {strange[0]}, and is no unfinished run of modegpt")
    try:
        with FileLock(work / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise ModegptError(f"another run is writing {work}: wait for it, or name another folder") from error


def _taken_up(work: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """What an earlier run of these settings has noted; notes them if there was none."""
    noted = parallel.gather(_noted(work))[0]  # rank 0 says, before anything changes
    if noted is None:
        _note(work, settings)
        parallel.gather(None)  # the others wait until it is there
    if not all(parallel.gather((work / "run.json").is_file())):
        raise ModegptError(f"every host must see {work.parent}: each rank writes its layers there")
    noted = noted or dict(settings)
    for name in sorted((settings.keys() | noted.keys()) - KNOWN):
        before, value = (entries.get(name, "not given") for entries in (noted, settings))
        if before != value:
            raise ModegptError(
                f"{work} holds an unfinished run with another {name} ({before}, now {value}): "
                "finish it with the same options, or delete that folder"
            )
    return noted


def _noted(work: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((work / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _note(work: Path, entries: Mapping[str, Any]) -> None:
    if parallel.rank() == 0:
        write_whole(work / "run.json", json.dumps(entries, indent=1))


def _stamps(folder: Path) -> str:
    """Names, sizes and times of the model's files: another model in the same folder is another run."""
    files = sorted((*folder.glob("*.safetensors"), folder / "config.json"))
    return " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
