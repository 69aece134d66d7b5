"""Models by name: an embedded one, a local folder, or a Hugging Face hub id."""

from __future__ import annotations

import difflib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from modegpt.errors import ModegptError
from modegpt.sources.hub import clear_errors, first_line, hub_reachable, quiet_transformers
from modegpt.sources.packages import EMBEDDED_MODELS
from modegpt.sources.smollm2 import cached_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPT_MINI = Path(__file__).parents[1] / "assets" / "opt-mini"
DTYPES = ("float32", "bfloat16", "float16", "float64")
# A folder without one of these has no tokenizer; transformers may make an empty one up.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def cache_dir() -> Path:
    """Where converted models are kept: MODEGPT_CACHE_DIR, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("MODEGPT_CACHE_DIR") or user_cache_dir("modegpt")).expanduser()


def resolve_model(name: str) -> str:
    """What `from_pretrained` can open: the folder of an embedded model, an existing folder, or a hub id.

    An embedded name wins over a folder of that name (write ./name for the folder). The first use of
    SmolLM2 converts it into `cache_dir()`. A hub id is not looked up here.

    Raises ModegptError for a folder without config.json, a path that is no folder, a misspelt embedded name,
    a name that cannot be a hub id, and what `smollm2.cached_folder` raises.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name in EMBEDDED_MODELS:
        return str(OPT_MINI if name == "opt-mini" else cached_folder(cache_dir()))
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModegptError(f"the folder '{name}' holds no model: it has no config.json")
        return str(folder)
    if folder.is_file():
        raise ModegptError(f"'{name}' is a file: give the model's folder")
    if "/" not in name:
        close = difflib.get_close_matches(name.lower(), EMBEDDED_MODELS)
        if close:
            raise ModegptError(f"unknown model '{name}': did you mean {close[0]}?")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModegptError(f"no model '{name}': no such folder, and it cannot be a hub id") from error
    return name


def auto_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 on CUDA and on CPUs that multiply it natively, else float32 (emulated bfloat16 is slower)."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.bfloat16
    # torch before 2.11 cannot tell.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def load_model(
    name: str, *, dtype: str | torch.dtype = "auto", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model, in eval mode and with no parameter that requires a gradient, and its tokenizer.

    A model of a dialect, such as a Mistral, is rewritten as what it is in disguise: see `families.dialects`.

    `name` as in `resolve_model`; `dtype` a torch dtype or its name, "auto" as in `auto_dtype`; `device`
    "cpu", "cuda", "cuda:N" or "auto" (CUDA if there is one). The tokenizer is None when a local folder has
    none: only tokenizing a text needs it.

    Raises ModegptError for an unknown or unavailable device, an unknown dtype, a model that cannot be found
    or reached, damaged or missing files, weights that do not fit the config, and an unknown architecture.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    from modegpt.families import rewritten

    where = find_device(device)
    precision = find_dtype(dtype, where)
    folder = model_folder(name)
    with clear_errors(name), quiet_transformers():
        model = _load_whole(folder, name, precision)
        kind = model.config.model_type
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model.config, "is_decoder", False):
            raise ModegptError(f"'{name}' is an encoder ({kind}): it sees the tokens that it would have to predict")
        model = rewritten(model)
        tokenizer = _load_tokenizer(name, folder)
        if tokenizer is None and not Path(name).expanduser().is_dir():  # on the hub nobody can add one
            raise ModegptError(f"the tokenizer of '{name}' is missing: name a model that has one")
    return model.eval().requires_grad_(False).to(where), tokenizer


def _load_whole(folder: Path, name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the CPU: its tensors are read by the rules of `folders`, and put in place by transformers."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_peft_available

    from modegpt.sources import folders

    adapted = (folder / folders.ADAPTER).is_file()
    if adapted and not is_peft_available():
        raise ModegptError(f"'{name}' holds an adapter: run `pip install peft`, or merge it into the model")
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if adapted or not folders.weight_files(folder):  # an adapter, or weights in .bin files
        config = folders.read_config(folder, name)
        model, loading = AutoModelForCausalLM.from_pretrained(folder, config=config, trust_remote_code=False, **options)
    else:
        found = folders.inspect(folder, name, dtype)
        state = found.tensors.read(found.tensors.shapes)
        kind, config = type(found.model), found.model.config
        model, loading = kind.from_pretrained(None, config=config, state_dict=state, **options)
    folders.refuse_misfits(
        name, loading["missing_keys"], loading["unexpected_keys"], [key for key, *_ in loading["mismatched_keys"]]
    )
    model.generation_config = folders.read_generation_config(folder, name, model)
    head = model.get_output_embeddings()
    if head is not None and model.config.tie_word_embeddings:  # for those who read the saved config
        model.config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    return model


def model_folder(name: str) -> Path:
    """The folder of a model's files; of a hub model what it takes is downloaded.

    Raises ModegptError as `load_model` does for a model that cannot be found or reached.
    """
    path = resolve_model(name)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    from modegpt.sources.folders import weight_files

    with clear_errors(name):
        offline = not hub_reachable(path, "model")

        def get(*wanted: str) -> Path:
            return Path(snapshot_download(path, allow_patterns=wanted, local_files_only=offline))

        folder = get(
            "*.json", "*.txt", "*.model", "*.jinja", "model.safetensors"
        )  # no patterns of folders: those are other models
        if files := weight_files(folder):
            return get(*files)
        return get("pytorch_model*.bin")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a local model alone, None if its folder has none. Raises ModegptError if it is damaged."""

    folder = model_folder(name)
    with clear_errors(name), quiet_transformers():
        return _load_tokenizer(name, folder)


def check_length(model: PreTrainedModel, length: int, what: str = "windows take") -> None:
    """As `inference.check_length`, whose imports take seconds."""
    from modegpt import inference

    inference.check_length(model, length, what)


def _load_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if not any((folder / file).is_file() for file in VOCABULARY_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a bare one
        if "trust_remote_code" in str(error):
            raise ModegptError(
                f"the tokenizer of '{name}' needs Python code from its own folder, which modegpt does not run"
            ) from error
        if not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
            raise ModegptError(
                f"the tokenizer of '{name}' has no tokenizer.json, and without it takes another package: run "
                "`pip install sentencepiece protobuf`"
            ) from error
        raise ModegptError(
            f"the tokenizer of '{name}' is missing or damaged: get it again ({first_line(error)})"
        ) from error


def find_device(device: str) -> torch.device:
    """The device of that name ("auto": CUDA if there is one), or a ModegptError if this machine has none."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ModegptError(f"unknown device '{device}': use cpu, cuda, cuda:N or auto") from error
    if where.type not in ("cpu", "cuda"):
        raise ModegptError(f"unsupported device '{device}': use cpu, cuda, cuda:N or auto")
    found = torch.cuda.device_count()
    if where.type == "cuda" and (where.index or 0) >= found:
        raise ModegptError(f"no device '{device}': torch sees {found} CUDA devices; use cpu or auto")
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)  # what is measured is asked of the current device
    return where


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The torch dtype of that name, "auto" as in `auto_dtype`. Raises ModegptError for an unknown one."""
    import torch

    if dtype == "auto":
        return auto_dtype(device)
    known = {name: getattr(torch, name) for name in DTYPES}
    if dtype in known.values():
        return dtype
    if dtype not in known:
        raise ModegptError(f"unknown dtype '{dtype}': use auto, {', '.join(DTYPES)}")
    return known[dtype]
