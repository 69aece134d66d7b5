"""Models and texts by name."""

from modegpt.sources.models import (
    auto_dtype,
    cache_dir,
    check_length,
    find_device,
    find_dtype,
    load_model,
    load_tokenizer,
    model_folder,
    resolve_model,
)
from modegpt.sources.packages import EMBEDDED_MODELS, EMBEDDED_PACKAGES
from modegpt.sources.texts import TEXTS, load_text, same_source, token_windows

__all__ = [
    "EMBEDDED_MODELS",
    "EMBEDDED_PACKAGES",
    "TEXTS",
    "auto_dtype",
    "cache_dir",
    "check_length",
    "find_device",
    "find_dtype",
    "load_model",
    "load_text",
    "load_tokenizer",
    "model_folder",
    "resolve_model",
    "same_source",
    "token_windows",
]
