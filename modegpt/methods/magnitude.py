"""Magnitude pruning, the sanity floor: MoDeGPT's shapes, chosen by the weights alone and solved for by nobody.

MLP channels go by the norm of their weights. Whole heads are too coarse a unit (SmolLM2 has three key/value heads), so
dims go within each head: query-key dims by the norm of the query's row times the key's, value dims by the norm of
the value's row times the output's column. All layers lose the same share.
"""

from torch import Tensor
from transformers import PreTrainedModel

from modegpt.allocate import check_ratio, ranks_for, uniform_allocation
from modegpt.decompose import cr_select
from modegpt.families import Decomposed, FreeMatrices, family_of
from modegpt.machine import Stopwatch, peak_memory_bytes
from modegpt.report import Report, count_parameters

MULTIPLE_OF = 8


def measure(model: PreTrainedModel, data: object, *, batch_size: int = 4, progress: bool = False) -> None:
    """Nothing: the data is not looked at."""


def compress(model: PreTrainedModel, measured: None, ratio: float) -> tuple[PreTrainedModel, Report]:
    """Keep the heaviest channels and dims; the ranks are multiples of 8 and the same in every layer."""
    check_ratio(ratio)
    family, clock = family_of(model), Stopwatch()
    layers, shape = family.layers(model), family.shape(model)
    (rank,) = ranks_for(uniform_allocation(1, ratio), shape, MULTIPLE_OF)
    report = Report(
        "magnitude", ratio, {"multiple_of": MULTIPLE_OF}, count_parameters(model), shape.total * len(layers)
    )
    small = family.shell(model, [rank] * len(layers))
    with clock("compress"):
        for index, layer in enumerate(layers):
            dense, attention = family.matrices(layer), layer.self_attn
            power = dense.down.double().square().sum(1)
            for name in family.up:
                power = power + layer.get_submodule(name).weight.double().square().sum(1)
            channels = _largest(power, rank.mlp)

            heads, group, d, width = dense.output.shape
            query = attention.q_proj.weight.double().view(heads, group, d, width)
            key = attention.k_proj.weight.double().view(heads, d, width)
            # the Gram matrices that white inputs would give, so that CR's scores are norms of weights
            dims = cr_select(query @ query.mT, key @ key.mT, rank.query_key, family.rotary)

            score = dense.value.double().square().sum(1) * dense.output.double().square().sum((1, 3))  # (heads, d)
            kept = _largest(score, rank.value)
            value = dense.value.gather(2, kept[:, None].expand(-1, width, -1))
            output = dense.output.gather(2, kept[:, None, :, None].expand(-1, group, -1, width))
            family.fill(
                family.layers(small)[index],
                layer,
                Decomposed(channels, dims, FreeMatrices(dense.down[channels], value, output)),
            )
            layers[index] = family.layers(small)[index]
    report.parameters_after = count_parameters(small)
    report.block_parameters_after = shape.parameters(rank.query_key, rank.value, rank.mlp) * len(layers)
    report.seconds, report.peak_memory_bytes = dict(clock.seconds), peak_memory_bytes()
    return small, report


def _largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of the last axis, ascending."""
    return scores.topk(count, -1).indices.sort(-1).values
