"""MoDeGPT: modular decomposition of causal language models, and its forerunner FWSVD."""
