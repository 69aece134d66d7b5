"""MoDeGPT: modular decomposition of causal language models, step by step.

The public names. torch and transformers, seconds of work, are loaded with the first name that is used, so that
`modegpt --help` and a mistyped option answer at once. With it transformers' Auto classes learn of compressed
checkpoints. Whoever wants only that says `import modegpt.modeling`: what an import does to another library should be
asked for by name. A saved folder needs neither, it carries its code for `trust_remote_code=True`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modegpt.errors import ModegptError
    from modegpt.evaluate import perplexity
    from modegpt.pipeline import compress
    from modegpt.sources import load_model, load_text, token_windows

__all__ = ["ModegptError", "compress", "load_model", "load_text", "perplexity", "token_windows"]
_HOMES = {
    "ModegptError": "modegpt.errors",
    "compress": "modegpt.pipeline",
    "load_model": "modegpt.sources",
    "load_text": "modegpt.sources",
    "perplexity": "modegpt.evaluate",
    "token_windows": "modegpt.sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'modegpt' has no attribute '{name}'")
    import_module("modegpt.modeling")  # registers the compressed architectures
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return __all__
