"""MoDeGPT: modular decomposition of causal language models, step by step.

The public names; each is imported when first used, since transformers takes seconds to load.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "ModegptError": "modegpt.errors",
    "compress": "modegpt.pipeline",
    "load_model": "modegpt.sources",
    "load_text": "modegpt.sources",
    "perplexity": "modegpt.evaluate",
    "token_windows": "modegpt.sources",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'modegpt' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
