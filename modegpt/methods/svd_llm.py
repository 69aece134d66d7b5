"""SVD-LLM (Wang et al., arXiv 2403.07378): truncate W where its *outputs* on the calibration tokens change least.

E||W x - W' x||^2 = ||(W - W') S||_F^2 with S S^T = E[x x^T]: an SVD of the whitened matrix W S, truncated. This is the
paper's whitening; its second step, which updates the factors layer by layer on the compressed model's own inputs and
helps most at high ratios, is not done.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt.allocate import TOKENS_PER_CHANNEL
from modegpt.calibrate import Tokens, stream
from modegpt.decompose import damped_cholesky
from modegpt.families import family_of
from modegpt.families.base import Tap
from modegpt.machine import Stopwatch
from modegpt.methods.low_rank import Factors, block_linears, compress, ordered_factors

__all__ = ["compress", "measure", "whitened_factors"]

SAME_INPUT = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}


def whitened_factors(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W whose first r minimise E||W x - W' x||^2 (truncation-aware data whitening).

    The paper multiplies back by S^-1: see `ordered_factors` for why that cancels.

    Args:
        weight: W, (out, in), as in `torch.nn.Linear`.
        gram: E[x x^T] of its inputs, (in, in), float64 advised.

    Returns:
        left (out, k), right (k, in), in the dtype of `gram`.

    Raises:
        ModegptError: `gram` holds NaN or inf, or is far from positive semi-definite.
    """
    root, _ = damped_cholesky(gram)
    return ordered_factors(weight, weight.to(gram) @ root)


@torch.no_grad()
def measure(model: PreTrainedModel, data: Tokens, *, batch_size: int = 4, progress: bool = False) -> Factors:
    """The factors of every block linear, whitened by its inputs in the dense model.

    Args:
        data: calibration tokens, (samples, length) int64 or a mapping with `attention_mask`: see `calibrate.walk`.

    Raises:
        ModegptError: unsupported model, NaN or inf in its weights or activations (the layer is named).
    """
    family, linears = family_of(model), block_linears(model)
    names, in_order = family.linears, list(linears.items())
    factors, clock = Factors("svd-llm"), Stopwatch()

    def taps(layer: nn.Module) -> dict[str, Tap]:
        return {name: (layer.get_submodule(name), "input") for name in names if name not in SAME_INPUT}

    walk = stream(model, family, data, taps, batch_size=batch_size, progress=progress)
    for index, seen in clock.iterate("calibrate", walk):
        factors.tokens = seen.tokens
        with clock("decompose"):
            here = in_order[index * len(names) :][: len(names)]
            for name, (full_name, linear) in zip(names, here, strict=True):
                left, right = whitened_factors(linear.weight, seen.grams[SAME_INPUT.get(name, name)])
                factors[full_name] = left.float(), right.float()
    factors.seconds = dict(clock.seconds)
    widest = max(linear.in_features for linear in linears.values())
    if factors.tokens < TOKENS_PER_CHANNEL * widest:
        factors.warnings.append(
            f"{factors.tokens} calibration tokens hardly determine the Gram matrix of {widest} inputs: expect poor "
            "quality, use at least ten tokens an input"
        )
    return factors
