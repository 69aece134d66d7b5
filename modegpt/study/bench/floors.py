"""How fast a compression could be at most: its arithmetic at the rates that this device reaches on large products."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from modegpt.families import family_of
from modegpt.gram import upper_size
from modegpt.study.bench.timing import timed
from modegpt.study.results import Row

SIZE = {"cuda": 8192, "cpu": 1024}  # of the square matrices whose product is timed
STEPS = {"forward": "calibrate", "Gram matrices": "calibrate", "solves": "decompose", "copies": "decompose"}


@dataclass(frozen=True)
class Rates:
    """What this device reaches on large matrices: FLOP/s in the model's dtype and in float64, bytes/s of a copy."""

    products: float
    solves: float
    copies: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates, measured now. A multiplication with its addition is two operations."""
    n, found = SIZE[device.type], []
    for kind in (dtype, torch.float64):
        a = torch.randn(n, n, device=device, dtype=kind)
        found.append(2 * n**3 / timed(lambda a=a: a @ a, device).seconds)
        del a
    source = torch.empty(8 * n * n, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / timed(lambda: target.copy_(source), device).seconds  # read and written
    return Rates(*found, copied)


def floors(model: PreTrainedModel, sizes: Mapping[str, Any], walks: int, rates: Rates) -> dict[str, float]:
    """The least seconds of each step of `compress` under a uniform allocation.

    Args:
        model: dense; only its sizes count.
        sizes: ratio, and samples and length of the calibration windows.
        walks: over the tokens.

    Small matrices (those of the heads), norms and activations are left out, so a floor is a little low.
    """
    config, shape = model.config, family_of(model).shape(model)
    layers, tokens = config.num_hidden_layers, sizes["samples"] * sizes["length"]
    n, width, kept = shape.mlp, config.hidden_size, round(shape.mlp * (1 - sizes["ratio"]))
    pairs = tokens * (sizes["length"] + 1) / 2  # of a query and a key that it sees
    attention = 2 * 2 * pairs * config.num_attention_heads * shape.query_key  # scores and mixing
    grams = 2 * tokens * upper_size(n)
    scores = 2 * n**3 / 3  # a Cholesky factor, and the inverse of a triangle
    regression = kept**3 / 3 + 2 * kept**2 * width + 2 * kept * (n - kept) * width
    moved = 2 * model.dtype.itemsize * (1 - sizes["ratio"]) * shape.total  # read and written
    return {
        "forward": walks * layers * (2 * shape.total * tokens + attention) / rates.products,
        "Gram matrices": layers * grams / rates.products,
        "solves": layers * (scores + regression) / rates.solves,
        "copies": layers * moved / rates.copies,
    }


def floor_rows(
    model: PreTrainedModel,
    sizes: Mapping[str, Any],
    walks: int,
    rates: Rates,
    seconds: Mapping[str, float],
    name: str,
    variant: str,
) -> list[Row]:
    """The rows of a results file: each step's floor, and how much of the limit a compression in `seconds` reached."""
    least = floors(model, sizes, walks, rates)
    same = {"model": name, "method": "modegpt", "ratio": sizes["ratio"], "variant": variant}
    same |= {"data": "random tokens", "seed": 0}
    rows = [Row(what=f"floor: {step}", value=value, unit="s", **same) for step, value in least.items()]
    for part in ("calibrate", "decompose", "total"):
        floor = sum(value for step, value in least.items() if part in (STEPS[step], "total"))
        share = {"what": f"share of the limit: {part}", "value": min(floor / seconds[part], 1.0), "unit": "share"}
        rows.append(Row(details=vars(rates), **share, **same))
    return rows
