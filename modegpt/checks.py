"""Checks of options that need no torch: a refused command line answers at once."""

import math

from modegpt.errors import ModegptError


def check_ratio(ratio: float) -> None:
    """Raise ModegptError unless 0 <= ratio < 1."""
    if not 0 <= ratio < 1:
        hint = f" (for {ratio:g} % give {ratio / 100:g})" if 1 < ratio < 100 else ""
        raise ModegptError(
            f"ratio is the share of the block parameters to remove and lies in [0, 1), got {ratio:g}{hint}"
        )


def check_positive(option: str, value: float) -> None:
    """Raise ModegptError unless 0 < value < infinity."""
    if not 0 < value < math.inf:
        raise ModegptError(f"{option} must be a positive number, got {value:g}")
