"""The paper's recipe as its text describes it beside this kit's shorter ways, step by step, on the same layer.

Literal means: correlations in float64 of everything that the algorithms name, the d_h x d_h matrix E[x x^T] with its
root by eigendecomposition, pseudo-inverses, and two SVDs a head (MoDeGPT, Algorithms 1 to 3; arXiv 2408.09632). It is
written to be fair: what serves all heads is done once.
"""

from typing import Any

import torch
from torch import Tensor

from modegpt.allocate import Ranks
from modegpt.calibrate import layer_inputs, tapped, token_batches
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.gram import GramSum
from modegpt.layer_statistics import LayerStatistics
from modegpt.machine import Stopwatch
from modegpt.pipeline import decompose_layer
from modegpt.study.bench.compress import warm_up
from modegpt.study.bench.shapes import config_of, random_model, random_tokens
from modegpt.study.results import STEPS, Row


@torch.no_grad()
def time_steps(
    shape: str,
    device: torch.device,
    *,
    ratio: float = 0.3,
    samples: int = 128,
    length: int = 2048,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Seconds of each step for one layer of a shape, by this kit (ours) and as the text has it (literal).

    Returns:
        seconds: {"ours": {step: s}, "literal": {step: s}}; agreement: share of kept channels and of kept dims that are
        the same, the largest difference of the value-output products relative to their largest entry, and the error of
        the Gram matrices from the model's own precision against float64, relative to their norm.
    """
    model = random_model(shape, 1, device=device)
    tokens = random_tokens(model.config, samples, length)
    warm_up(model, tokens[:1])
    family = family_of(model)
    layer, size = family.layers(model)[0], family.shape(model)
    channels, dims = int(size.mlp * (1 - ratio)), 2 * int(size.value * (1 - ratio) / 2)
    if not channels or not dims:
        raise ModegptError(f"a ratio of {ratio:g} leaves none of {size.value} dims: take a smaller one")
    ours, literal = Stopwatch(), Stopwatch()

    taps = family.taps(layer) | {"x": (layer.self_attn.v_proj, "input")}
    sums = {name: GramSum() for name in ("mlp", "query", "key", "value")}
    exact: dict[str, Tensor] = {}
    count = samples * length
    for batch in token_batches(model, tokens, batch_size):
        states, (kwargs, *_) = layer_inputs(model, family.layers(model), batch)
        with ours("forward"):
            layer(states, **kwargs)
        with tapped(taps) as seen:
            layer(states, **kwargs)
        query, key, value = (t.transpose(0, 1).flatten(1, 2) for t in family.head_states(layer, seen))
        rows = {"mlp": seen["mlp"].flatten(0, -2), "query": query.unflatten(0, (len(key), -1)), "key": key}
        with ours("correlations"):
            for name, found in (rows | {"value": value}).items():
                sums[name].add(found)
        with literal("correlations"):
            for name, found in (rows | {"x": seen["x"].flatten(0, -2)}).items():
                wide = found.double()
                exact[name] = exact.get(name, 0) + wide.mT @ wide
                del wide
        del seen, states, query, key, value, rows
    literal.seconds["forward"] = ours.seconds["forward"]
    with ours("correlations"):
        grams = {name: total.matrix().div_(count) for name, total in sums.items()}
    exact = {name: total / count for name, total in exact.items()}
    gram_error = {name: relative_error(grams[name], exact[name]) for name in ("mlp", "query", "key")}

    dense, ranks = family.matrices(layer), Ranks(dims, dims, channels)
    seen = LayerStatistics(count, 0.0, **grams)
    options = {"rotary": family.rotary, "pair_score": "sum"}  # the text scores single dims
    if device.type == "cuda":  # the libraries' first calls are nobody's
        decompose_layer(seen, dense, ranks, **options)
        _mlp(grams["mlp"][:256, :256].clone(), dense.down[:256].double(), 128)
        _query_key(exact["query"], exact["key"], dims, family.rotary)
        _value_output(exact["x"], dense.value[:1].double(), dense.output[:1].double(), dims)
    found, _ = decompose_layer(seen, dense, ranks, clock=ours, **options)
    ours_product = found.matrices.value[:, None] @ found.matrices.output

    with literal("mlp"):
        kept_literally, _ = _mlp(exact.pop("mlp"), dense.down.double(), channels)
    with literal("query_key"):
        dims_literally = _query_key(exact.pop("query"), exact.pop("key"), dims, family.rotary)
    with literal("value_output"):
        product = _value_output(exact.pop("x"), dense.value.double(), dense.output.double(), dims)
    return {
        "shape": shape,
        "tokens": count,
        "ratio": ratio,
        "layers": config_of(shape).num_hidden_layers,
        "seconds": {
            "ours": {step: ours.seconds[step] for step in STEPS},
            "literal": {step: literal.seconds[step] for step in STEPS},
        },
        "agreement": {
            "channels": _shared(found.channels[None], kept_literally[None]),
            "dims": _shared(found.dims, dims_literally),
            "value_output": ((ours_product - product).abs().max() / product.abs().max()).item(),
            "gram_error": gram_error,
        },
    }


def literal_rows(found: dict[str, Any]) -> list[Row]:
    """The rows of a results file: seconds of every step and of the whole model, by both, and how far they agree.

    The whole is the sum of the steps times the layers; this kit's default walks a large model twice, so its forward
    pass counts twice. The paper's text needs the same scores before the same ranks, and is given them for nothing.
    """
    fields = {"model": found["shape"], "ratio": found["ratio"], "data": "random tokens", "seed": 0}
    rows, totals = [], {}
    for name, method in (("ours", "modegpt"), ("literal", "literal")):
        seconds = found["seconds"][name]
        for step in STEPS:
            rows.append(Row(what=f"one layer: {step}", value=seconds[step], unit="s", method=method, **fields))
        totals[name] = found["layers"] * (sum(seconds.values()) + (seconds["forward"] if name == "ours" else 0))
        rows.append(Row(what="all layers", value=totals[name], unit="s", method=method, **fields))
    rows.append(Row(what="speed-up", value=totals["literal"] / totals["ours"], unit="", method="modegpt", **fields))
    agreement = found["agreement"]
    for name in ("channels", "dims"):
        rows.append(Row(what=f"kept {name} in common", value=agreement[name], unit="share", method="modegpt", **fields))
    rows.append(
        Row(
            what="value-output products differ",
            value=agreement["value_output"],
            unit="",
            method="modegpt",
            details={"relative to": "the largest entry"},
            **fields,
        )
    )
    for name, error in agreement["gram_error"].items():
        fields["variant"] = name
        rows.append(Row(what="Gram matrix against float64", value=error, unit="", method="modegpt", **fields))
    return rows


def _mlp(gram: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1: scores diag(C (C + lambda I)^-1), then W_D <- (S^T C S)^+ S^T C W_D with a pseudo-inverse."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    ridge = gram.diagonal().mean()
    scores = (gram @ torch.linalg.inv(gram + ridge * eye)).diagonal()
    del eye
    keep = scores.topk(rank).indices.sort().values
    return keep, torch.linalg.pinv(gram[keep][:, keep], hermitian=True) @ (gram[keep] @ down)


def _query_key(query: Tensor, key: Tensor, rank: int, rotary: bool) -> Tensor:
    """Algorithm 2: column norms of the roots of both correlations of every head."""
    scores = (_root(query).square().sum(-2).sqrt() * _root(key).square().sum(-2).sqrt()[:, None]).sum(1)
    if not rotary:
        return scores.topk(rank, dim=-1).indices.sort(-1).values
    half = scores.shape[-1] // 2
    lower = (scores[:, :half] + scores[:, half:]).topk(rank // 2, dim=-1).indices.sort(-1).values
    return torch.cat([lower, lower + half], -1)


def _value_output(gram: Tensor, value: Tensor, output: Tensor, rank: int) -> Tensor:
    """Algorithm 3: SVD(C^1/2 W_V), SVD(S V^T W_O), back through C^-1/2. (kv_heads, group, w, w) products."""
    values, basis = torch.linalg.eigh(gram)
    values = values.clamp(min=values[-1] * 1e-12)
    root, inverse = (basis * power @ basis.mT for power in (values.sqrt(), values.rsqrt()))
    heads, group, _, width = output.shape
    products = output.new_empty(heads, group, width, width, dtype=torch.float32)
    for head in range(heads):  # a value head serves its group, so their outputs stand side by side
        left, sizes, right = torch.linalg.svd(root @ value[head], full_matrices=False)
        joint = output[head].transpose(0, 1).flatten(1)
        inner, spread, outer = torch.linalg.svd(sizes[:, None] * right @ joint, full_matrices=False)
        new_value = inverse @ left @ inner[:, :rank]
        new_output = (spread[:rank, None] * outer[:rank]).unflatten(1, (group, width)).transpose(0, 1)
        products[head] = new_value @ new_output
    return products


def _root(gram: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(gram)
    return basis * values.clamp(min=0).sqrt()[..., None, :] @ basis.mT


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, Frobenius; both of one shape, (..., n)."""
    return ((found - wanted).norm() / wanted.norm()).item()


def _shared(found: Tensor, wanted: Tensor) -> float:
    """Share of the entries of each row that stand in both."""
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / found.numel()
