"""`python -m modegpt` is the console script."""

from modegpt.cli import main

main()
