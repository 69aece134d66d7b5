"""Whether Gram matrices from half-precision products do: the same compression from float64 ones beside it."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modegpt.calibrate import collect
from modegpt.decompose import cr_select, leverage_scores
from modegpt.evaluate import perplexity
from modegpt.families import family_of
from modegpt.layer_statistics import LayerStatistics
from modegpt.pipeline import compress
from modegpt.study.bench.literal import relative_error
from modegpt.study.results import Row, perplexity_row


def precision_rows(
    name: str, model: PreTrainedModel, tokens: Tensor, windows: Tensor, *, ratio: float, data: dict[str, str]
) -> list[Row]:
    """Compress a model from Gram matrices of float64 products, and of those that its device takes by default.

    Args:
        tokens: calibration tokens (samples, length); windows: evaluation windows (windows, length).
        data: "calibration" and "text", the names that go into the rows.

    Returns:
        Rows: error of the Gram matrices against float64, share of channels and dims that both keep, perplexities.
    """
    rows: list[Row] = []
    fields: dict[str, Any] = {"model": name, "method": "modegpt", "ratio": ratio, "seed": 0}
    exact = collect(model, tokens, product_dtype=torch.float64)
    default = collect(model, tokens)
    for part in ("mlp", "query", "key", "value"):
        pairs = zip(default, exact, strict=True)
        errors = [relative_error(getattr(a, part), getattr(b, part)) for a, b in pairs]
        details = {"largest": max(errors), "over": "layers"}
        rows.append(
            Row(
                what="Gram matrix against float64",
                value=sum(errors) / len(errors),
                unit="",
                variant=part,
                data=data["calibration"],
                details=details,
                **fields,
            )
        )
    channels = _shared(model, default, exact, ratio)
    for part, share in channels.items():
        rows.append(Row(what=f"kept {part} in common", value=share, unit="share", data=data["calibration"], **fields))
    for variant, statistics in (("float64 products", exact), ("default products", default)):
        small, _ = compress(copy.deepcopy(model), statistics, ratio=ratio)
        rows.append(perplexity_row(perplexity(small, windows), {}, variant=variant, data=data["text"], **fields))
        del small
    return rows


def _shared(
    model: PreTrainedModel, found: list[LayerStatistics], exact: list[LayerStatistics], ratio: float
) -> dict[str, float]:
    """Share of the kept channels and dims that both statistics choose, at the same size in every layer."""
    family, shape = family_of(model), family_of(model).shape(model)
    channels, dims = int(shape.mlp * (1 - ratio)), 2 * int(shape.query_key * (1 - ratio) / 2)

    def keep(seen: LayerStatistics) -> tuple[Tensor, Tensor]:
        return leverage_scores(seen.mlp).topk(channels).indices[None], cr_select(
            seen.query, seen.key, dims, family.rotary
        )

    counts = {"channels": [0, 0], "dims": [0, 0]}
    for a, b in zip(found, exact, strict=True):
        for part, mine, theirs in zip(counts, keep(a), keep(b), strict=True):
            for left, right in zip(mine.tolist(), theirs.tolist(), strict=True):
                counts[part][0] += len(set(left) & set(right))
                counts[part][1] += len(left)
    return {part: common / of for part, (common, of) in counts.items()}
