"""The command line. Importing it loads neither torch nor transformers: they come when work begins."""

from modegpt.cli.app import app, main

__all__ = ["app", "main"]
