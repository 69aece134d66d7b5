"""MoDeGPT: modular decomposition of causal language models, step by step.

The public names. Importing this package also tells transformers' Auto classes about compressed checkpoints, which
is why it takes the seconds that transformers takes.
"""

import modegpt.modeling  # noqa: F401  registers the compressed architectures
from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity
from modegpt.pipeline import compress
from modegpt.sources import load_model, load_text, token_windows

__all__ = ["ModegptError", "compress", "load_model", "load_text", "perplexity", "token_windows"]
