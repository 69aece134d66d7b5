"""ShortGPT (Men et al. 2024, arXiv 2403.03853): drop the layers with the smallest Block Influence.

The result is a stock model with fewer layers. Whole layers are a coarse unit, so the ratio is met to half a layer.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from modegpt import calibrate
from modegpt.allocate import check_ratio
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.machine import Stopwatch, peak_memory_bytes
from modegpt.report import Report, count_parameters


def measure(
    model: PreTrainedModel, data: Tensor | Mapping[str, Tensor], *, batch_size: int = 4, progress: bool = False
) -> Tensor:
    """Block Influence of every layer, (layers,) float64: 1 - E[cos(x_in, x_out)] of the residual stream."""
    return calibrate.block_influence(model, family_of(model), data, batch_size=batch_size, progress=progress)


def compress(model: PreTrainedModel, influence: Tensor, ratio: float) -> tuple[PreTrainedModel, Report]:
    """Take the round(ratio * layers) layers of least influence out of the model itself.

    Args:
        influence: what `measure` found, (layers,).
        ratio: share of the layers to drop, in [0, 1).

    Raises:
        ModegptError: an unsupported model, a ratio out of range, one that drops no layer, or one that leaves none.
    """
    check_ratio(ratio)
    family, clock = family_of(model), Stopwatch()
    layers = family.layers(model)
    count, per_layer = len(layers), family.shape(model).total
    drop = round(ratio * count)
    if drop == count:
        raise ModegptError(f"dropping {ratio:.0%} of {count} layers leaves none: lower the ratio")
    if ratio and not drop:
        raise ModegptError(f"ShortGPT drops whole layers, and {ratio:.1%} of {count} is less than half of one")
    report = Report("shortgpt", ratio, {}, count_parameters(model), count * per_layer)
    with clock("compress"):
        dropped = influence.topk(drop, largest=False).indices.tolist()
        for index in sorted(dropped, reverse=True):
            del layers[index]
        for index, layer in enumerate(layers):
            layer.self_attn.layer_idx = index  # its place in the key-value cache
        model.config.num_hidden_layers = len(layers)
        if kinds := getattr(model.config, "layer_types", None):  # which of them have a window
            model.config.layer_types = [kind for index, kind in enumerate(kinds) if index not in dropped]
    report.settings["dropped_layers"] = sorted(dropped)
    report.parameters_after, report.block_parameters_after = count_parameters(model), len(layers) * per_layer
    report.seconds, report.peak_memory_bytes = dict(clock.seconds), peak_memory_bytes()
    return model, report
