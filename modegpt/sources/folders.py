"""What a model's folder holds, by one set of rules, whether the model is loaded whole or one layer at a time.

They are the rules of `from_pretrained`. What it only warns of, or finds out late, is found in the files' headers and
refused before any tensor is read; and the config says afterwards what the tensors are.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modegpt.errors import ModegptError
from modegpt.families.attributes import told
from modegpt.families.base import empty_model
from modegpt.modeling import COMPRESSED  # which registers the compressed architectures
from modegpt.sources.hub import first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Of the run, not of the model: nothing here looks at attention maps or at tuples
RUN_ENTRIES = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
NO_FLOATS = ("I8", "U8", "I16", "I32", "I64", "BOOL")


class StoredTensors:
    """The tensors in a folder's safetensors files, in which `shapes` and `dtypes` are known before any is read.

    Where there is an index, a tensor counts if it is in the file that the index names.

    Raises:
        ModegptError: as `weight_files`. What is damaged or missing raises what safetensors raises.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file, listed in weight_files(folder).items():
            with safe_open(folder / file, "pt") as header:
                for name in sorted(header.keys() if listed is None else listed.intersection(header.keys())):
                    part = header.get_slice(name)
                    self.places[name], self.shapes[name] = file, tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, as they are stored; each is in memory only once it is looked at."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.places[name], []).append(name)
        found = {}
        for file, members in by_file.items():
            with safe_open(self.folder / file, "pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in members}
        return found


@dataclass
class ModelFolder:
    """A model without weights (parameters on the meta device, buffers in place), and what its files have for it.

    `names` are those of the model's tensors and those in the files, which may be without the model's prefix.
    """

    model: PreTrainedModel
    tensors: StoredTensors
    names: dict[str, str]

    def refuse_misfits(self, name: str) -> None:
        """Raise ModegptError unless the files hold every tensor of the model, in its shape, and no other layers'."""
        wanted = self.model.state_dict()
        tied = tied_names(self.model) if self.model.config.tie_word_embeddings else set()
        stored = set(self.names)
        missing = wanted.keys() - stored - (tied if tied & stored else set())
        shapes = [(key, self.tensors.shapes[place], tuple(wanted[key].shape)) for key, place in self.names.items()]
        refuse_misfits(
            name,
            missing,
            self.tensors.shapes.keys() - self.names.values(),
            [key for key, found, shape in shapes if found != shape],
        )


def inspect(folder: Path, name: str, dtype: torch.dtype) -> ModelFolder:
    """Read config and headers of a folder with safetensors; no tensor is read, but where two claim to be one.

    Raises:
        ModegptError: as `read_config`; no safetensors, a tensor that is there twice, or whole numbers for weights.
    """
    config, tensors = read_config(folder, name), StoredTensors(folder)
    model = empty_model(config, dtype)
    names = names_in_model(name, model, tensors.shapes)
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and tensors.dtypes.get(names.get(key, "")) in NO_FLOATS:
            kind = tensors.dtypes[names[key]]
            raise ModegptError(
                f"the weights of '{name}' are quantized ({key} is {kind}): get the model in full precision"
            )
    tied = [names[key] for key in tied_names(model) if key in names]
    if config.tie_word_embeddings and len(tied) == 2 and not torch.equal(*tensors.read(tied).values()):
        config.tie_word_embeddings = False  # the files know better
        model = empty_model(config, dtype)
    if config.tie_word_embeddings and len(tied) == 1:
        names |= dict.fromkeys(tied_names(model), tied[0])
    return ModelFolder(model, tensors, names)


def read_config(folder: Path, name: str) -> PreTrainedConfig:
    """The config of a folder, less what is of a run and not of the model.

    Raises:
        ModegptError: no JSON object, not UTF-8, a quantized model, an unknown dtype, no layers. What is wrong by
            transformers' own rules raises what it raises.
    """
    entries = _read_json(folder / "config.json", name)
    if quantized := entries.pop("quantization_config", None):
        method = quantized.get("quant_method", "unknown method") if isinstance(quantized, Mapping) else quantized
        raise ModegptError(f"'{name}' is quantized ({method}), which modegpt does not read: get it in full precision")
    kind = entries.get("model_type")
    if kind and kind not in COMPRESSED and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "auto_map" not in entries:
        raise ModegptError(
            f"'{name}', a '{kind}', is no causal language model that this version of transformers knows{told(entries)}"
        )
    layers = entries.get("num_hidden_layers", 1)
    if isinstance(layers, int) and layers < 1:
        raise ModegptError(f"config.json of '{name}' is not valid: it has no layers (num_hidden_layers is {layers})")
    changes: dict[str, Any] = {key: value for key, value in RUN_ENTRIES.items() if key in entries}
    vocabulary, pad = entries.get("vocab_size"), entries.get("pad_token_id")
    if isinstance(vocabulary, int) and isinstance(pad, int) and pad >= vocabulary:
        changes["pad_token_id"] = None  # the embedding has no such row
    for key in ("dtype", "torch_dtype"):
        if isinstance(word := entries.get(key), str):
            changes[key] = None if word == "auto" else word.removeprefix("torch.")
            if word != "auto" and not isinstance(getattr(torch, changes[key], None), torch.dtype):
                raise ModegptError(f"config.json of '{name}' is not valid: {key} is '{word}'")
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, **changes)


def read_generation_config(folder: Path, name: str, model: PreTrainedModel) -> GenerationConfig:
    """The folder's generation config, made valid where only `do_sample` is missing; without a file, the model's own.

    Raises:
        ModegptError: no JSON object, not UTF-8, or values that transformers refuses.
    """
    if not (folder / "generation_config.json").is_file():
        return model.generation_config
    entries = _read_json(folder / "generation_config.json", name)
    vocabulary, pad = model.get_input_embeddings().num_embeddings, entries.get("pad_token_id")
    if isinstance(pad, int) and pad >= vocabulary:
        entries["pad_token_id"] = None
    for changes in ({}, {"do_sample": True}):  # a temperature without sampling is a common slip; it would not be saved
        try:
            config = GenerationConfig.from_dict(entries | changes)
            config.validate(strict=True)
            return config
        except (ValueError, TypeError, AttributeError) as error:
            reason = error
    raise ModegptError(f"generation_config.json of '{name}' is not valid: {first_line(reason)}")


def weight_files(folder: Path) -> dict[str, set[str] | None]:
    """{safetensors file: the tensors in it that count, None for all}, the files that `from_pretrained` would take.

    Raises ModegptError for an index that lists none, or a file outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    if not (folder / INDEX).is_file():
        return {}
    places = _read_json(folder / INDEX, str(folder)).get("weight_map")
    if not isinstance(places, Mapping) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ModegptError(f"{INDEX} of '{folder}' has no weight_map that says which file holds what: get it again")
    files: dict[str, set[str] | None] = {}
    for name, file in sorted(places.items(), key=lambda place: (place[1], place[0])):
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ModegptError(f"{INDEX} of '{folder}' names a file outside the folder, {file}")
        files.setdefault(file, set()).add(name)
    return files


def names_in_model(name: str, model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """{name in the model: name in the files} of what both know; the model's prefix may be there or not.

    Raises ModegptError if a tensor is there with the prefix and without.
    """
    wanted, prefix = model.state_dict().keys(), f"{model.base_model_prefix}."
    found: dict[str, str] = {}
    for place in stored:
        ways = (place.removeprefix(prefix), f"{prefix}{place}", place)
        key = next((way for way in ways if way in wanted), None)
        if key in found:
            raise ModegptError(f"the weights of '{name}' hold {key} twice, as {found[key]} and as {place}")
        if key is not None:
            found[key] = place
    return found


def tied_names(model: PreTrainedModel) -> set[str]:
    """The names of the embedding and of the head, which may be one tensor."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {f"{key}.weight" for key, module in model.named_modules() if module in ends}


def refuse_misfits(name: str, missing: Iterable[str], unused: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raise ModegptError if tensors are missing or of another shape, or some of layers have no place in the model."""
    if missing := sorted(missing):
        raise ModegptError(f"the weights of '{name}' lack {len(missing)} tensors, the first is {missing[0]}")
    dropped = sorted(key for key in unused if ".layers." in f".{key}" and not key.endswith("rotary_emb.inv_freq"))
    if dropped:
        raise ModegptError(
            f"the weights of '{name}' hold {len(dropped)} tensors that its architecture does not use, "
            f"the first is {dropped[0]}: modegpt does not know this model"
        )
    if misshapen := sorted(misshapen):
        raise ModegptError(
            f"the weights of '{name}' do not have the sizes that its config.json says: {len(misshapen)} tensors, the "
            f"first is {misshapen[0]}"
        )


def _read_json(file: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file, or a ModegptError if it is none."""
    if not file.is_file():
        raise ModegptError(f"'{name}' is no causal language model: it has no {file.name}")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ModegptError(f"{file.name} of '{name}' is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ModegptError(f"a JSON file of '{name}' is damaged, {file.name} ({error}): get the model again") from error
    if not isinstance(entries, dict):
        raise ModegptError(f"{file.name} of '{name}' is not valid: it is no JSON object")
    return entries
