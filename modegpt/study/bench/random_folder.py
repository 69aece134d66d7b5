"""A Hugging Face folder of a published shape with random weights, layer by layer: no memory has to hold the model."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.families.dialects import rewriting
from modegpt.files import write_whole
from modegpt.sources.folders import INDEX, empty_model
from modegpt.study.bench.shapes import SHAPES, config_of

WRITERS = 4  # threads, each with one layer in memory


def make_folder(folder: Path, shape: str, layers: int | None, device: torch.device, dtype: torch.dtype) -> None:
    """Make the folder of a model of that shape, a file for each layer; what an earlier try has written stays.

    Matrices are drawn on the device as a new model's are (normal, of the config's deviation), norms are ones, biases
    zeros. The index comes last: with it the folder is whole.

    Raises:
        ModegptError: something else is in the folder, or the disk refuses.
    """
    config = config_of(shape, layers)
    entries = SHAPES[shape] | {"num_hidden_layers": config.num_hidden_layers}
    _check_ours(folder, entries)
    if (folder / INDEX).is_file():
        return
    model = empty_model(config, dtype)
    shapes = {name: model.state_dict()[name].shape for name in rewriting(model).parts}
    listed = family_of(model).layers(model)
    prefix = next(name for name, module in model.named_modules() if module is listed)
    groups = [[name for name in shapes if name.startswith(f"{prefix}.{index}.")] for index in range(len(listed))]
    groups.append(sorted(shapes.keys() - set().union(*groups)))
    files = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]

    def write(number: int) -> None:
        place = folder / files[number]
        if not place.is_file():
            drawn = _draw({name: shapes[name] for name in groups[number]}.items(), config, device, dtype, number)
            save_file(drawn, place.with_suffix(".partial"), {"format": "pt"})
            place.with_suffix(".partial").rename(place)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, range(len(groups))))
    except OSError as error:
        raise ModegptError(f"cannot write {folder}: {error.strerror or error}") from error
    places = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    size = sum((folder / file).stat().st_size for file in files)
    write_whole(folder / INDEX, json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1))


def _check_ours(folder: Path, entries: dict[str, object]) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise ModegptError(f"{folder} already holds something: name another folder")
    found = AutoConfig.from_pretrained(folder)
    if other := [name for name, value in entries.items() if getattr(found, name, None) != value]:
        raise ModegptError(f"{folder} holds another model, of another {other[0]}: name another folder")


def _draw(
    shapes: Iterable[tuple[str, torch.Size]],
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, Tensor]:
    draw = torch.Generator(device).manual_seed(seed)
    deviation = getattr(config, "init_std", None) or config.initializer_range
    found = {}
    for name, size in shapes:
        if len(size) > 1:
            tensor = torch.empty(size, device=device, dtype=dtype).normal_(0, deviation, generator=draw)
        else:
            tensor = torch.full(size, float("norm" in name and name.endswith("weight")), dtype=dtype)
        found[name] = tensor.cpu()
    return found
