"""What the low-rank methods share: W (out, in) of every block linear becomes left (out, r) times right (r, in).

The methods differ in one thing, a matrix R on the side of the inputs that says which errors of W matter: they
minimise ||(W - W') R||_F over the W' of rank r. R is the identity (plain SVD), a Cholesky factor of E[x x^T]
(SVD-LLM), or the root of each input's Fisher information (FWSVD).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, OPTForSequenceClassification, PreTrainedModel

from modegpt.allocate import check_ratio
from modegpt.errors import ModegptError
from modegpt.families import FAMILIES, Family, family_of
from modegpt.families.base import derived_config, entry_of
from modegpt.machine import Stopwatch, peak_memory_bytes
from modegpt.modeling import (
    COMPRESSED,
    LowRankLlamaConfig,
    LowRankLlamaForCausalLM,
    LowRankLlamaForSequenceClassification,
    LowRankOPTConfig,
    LowRankOPTForCausalLM,
    LowRankOPTForSequenceClassification,
)
from modegpt.modeling.modeling_lowrank import LowRankLinear
from modegpt.report import Report, count_parameters

MODELS = {
    "llama": (LowRankLlamaConfig, LowRankLlamaForCausalLM),
    "opt": (LowRankOPTConfig, LowRankOPTForCausalLM),
}
CLASSIFIERS = {
    LlamaForSequenceClassification: ("llama", LowRankLlamaConfig, LowRankLlamaForSequenceClassification),
    OPTForSequenceClassification: ("opt", LowRankOPTConfig, LowRankOPTForSequenceClassification),
}


class Factors(dict[str, tuple[Tensor, Tensor]]):
    """What a low-rank method measured: {full module name: (left (out, k), right (k, in))}, k = min(out, in), float32.

    Ordered by importance: the first r columns of left and rows of right are the method's result of rank r.
    """

    def __init__(self, method: str):
        super().__init__()
        self.method, self.tokens = method, 0
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []


@torch.no_grad()
def ordered_factors(weight: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W whose first r minimise ||(W - W') R||_F over all W' of rank r, whatever r.

    With W R = U S V^T the best W' R is U_r S_r V_r^T = U_r U_r^T W R (Eckart and Young). So W' = U_r (U_r^T W): the
    R^-1 by which the papers multiply S_r V_r^T again cancels, so R need not be invertible.

    Args:
        weight: W, (out, in), as in `torch.nn.Linear`.
        weighted: W R, (out, in), float64 advised.

    Returns:
        left = U (out, k), with orthonormal columns, and right = U^T W (k, in), in the dtype of `weighted`.
    """
    left = torch.linalg.svd(weighted, full_matrices=False).U
    return left, left.mT @ weight.to(weighted)


def _family(model: PreTrainedModel) -> Family:
    """The family of a language model that has a low-rank class, or of a classifier that has its layers."""
    if known := CLASSIFIERS.get(type(model)):
        return FAMILIES[known[0]]
    if type(model).__name__.endswith("ForSequenceClassification") and model.config.model_type not in COMPRESSED:
        wanted = " or ".join(kind.__name__ for kind in CLASSIFIERS)
        raise ModegptError(f"a classifier to compress is a {wanted}, got a {type(model).__name__}")
    family = family_of(model)
    entry_of(family, MODELS, "a low-rank method")
    return family


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linears of a dense model's decoder layers by their full module names, layer after layer.

    A model for language or for classification.

    Raises:
        ModegptError: an unsupported or already compressed model; weights that hold NaN or inf (they are named).
    """
    family = _family(model)
    layers, names = family.layers(model), family.linears
    path = next(name for name, module in model.named_modules() if module is layers)
    linears = {f"{path}.{i}.{name}": layer.get_submodule(name) for i, layer in enumerate(layers) for name in names}
    for name, linear in linears.items():
        if not torch.isfinite(linear.weight).all():
            raise ModegptError(f"{name}: its weights hold NaN or inf")
    return linears


def check_saves(rank: int, out_features: int, in_features: int) -> None:
    """Raise ModegptError if two factors of this rank hold no fewer parameters than the matrix."""
    m, n = out_features, in_features
    if rank * (m + n) >= m * n:
        raise ModegptError(
            f"rank {rank} of a {m} x {n} matrix saves nothing: break-even is at rank {m * n / (m + n):g}"
        )


def rank_for_ratio(ratio: float, out_features: int, in_features: int) -> int:
    """The largest rank, at least 1, whose factors hold at most the share 1 - ratio of m n; 0 (dense) at ratio 0.

    Raises:
        ModegptError: `ratio` is not in [0, 1), or the matrix is so small that even this rank saves nothing.
    """
    check_ratio(ratio)
    if ratio == 0:
        return 0
    m, n = out_features, in_features
    rank = max(1, int((1 - ratio) * m * n / (m + n) + 1e-9))
    check_saves(rank, m, n)
    return rank


def rank_for_share(share: float, out_features: int, in_features: int) -> int:
    """A share of the full rank min(m, n), at least 1; FWSVD's paper keeps 0.33.

    Raises:
        ModegptError: `share` is not in (0, 1), or that rank saves nothing.
    """
    if not 0 < share < 1:
        raise ModegptError(f"a share of the full rank lies between 0 and 1, got {share:g}")
    rank = max(1, int(share * min(out_features, in_features) + 1e-9))
    check_saves(rank, out_features, in_features)
    return rank


@torch.no_grad()
def factorize_(
    module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], rank_of: Callable[[int, int], int]
) -> dict[str, int]:
    """Replace linears by their first factors, in place, in any module; the bias moves to the second factor.

    A factor can be trained if the weight that it replaces could.

    Args:
        module: holds an `nn.Linear` under every name in `factors`.
        factors: name -> ordered (left (out, k), right (k, in)).
        rank_of: (out, in) -> rank, 0 to leave the linear as it is.

    Returns:
        The rank of every named linear.
    """
    ranks = {}
    for name, (left, right) in factors.items():
        dense = module.get_submodule(name)
        ranks[name] = rank = rank_of(dense.out_features, dense.in_features)
        if rank == 0:
            continue
        with torch.device("meta"):
            small = LowRankLinear(dense.in_features, dense.out_features, rank, bias=dense.bias is not None)
        small.requires_grad_(dense.weight.requires_grad)
        state = {"left.weight": left[:, :rank], "right.weight": right[:rank]}
        # a copy: training must not reach the factors
        state = {key: t.to(dense.weight).clone(memory_format=torch.contiguous_format) for key, t in state.items()}
        if dense.bias is not None:
            state["left.bias"] = dense.bias
            small.left.bias.requires_grad_(dense.bias.requires_grad)  # loading sets what it shares to the new one's
        small.load_state_dict(state, assign=True)
        module.set_submodule(name, small.train(dense.training))
    return ranks


def compress(model: PreTrainedModel, measured: Factors, ratio: float) -> tuple[PreTrainedModel, Report]:
    """Replace every block linear by its first r factors, r = (1 - ratio) m n / (m + n).

    Embeddings, norms and biases are shared with the dense model, which stays as it is.

    Args:
        model: the dense model on which `measured` was measured.
        measured: the ordered factors of all its block linears.
        ratio: share of the block linears' weights to remove, in [0, 1); at 0 all linears stay dense.

    Raises:
        ModegptError: unsupported model, ratio out of range, or factors of another model.
    """
    check_ratio(ratio)
    linears, clock = block_linears(model), Stopwatch()
    shapes = {name: (left.shape[0], right.shape[1]) for name, (left, right) in measured.items()}
    if shapes != {name: tuple(linear.weight.shape) for name, linear in linears.items()}:
        raise ModegptError("the factors are not those of this model")
    with clock("build"):
        small = _twin(model)
        ranks = factorize_(small, measured, lambda m, n: rank_for_ratio(ratio, m, n))
        names = _family(model).linears
        small.config.ranks = {name: [*ranks.values()][i :: len(names)] for i, name in enumerate(names)}

    settings = {"ranks": {name: sizes[0] for name, sizes in small.config.ranks.items()}}  # the same in every layer
    before = sum(linear.weight.numel() for linear in linears.values())
    report = Report(measured.method, ratio, settings, count_parameters(model), before, tokens=measured.tokens)
    after = (small.get_submodule(name).named_parameters() for name in linears)
    report.block_parameters_after = sum(p.numel() for part in after for name, p in part if name.endswith("weight"))
    report.parameters_after, report.peak_memory_bytes = count_parameters(small), peak_memory_bytes()
    report.seconds, report.warnings = {**measured.seconds, **clock.seconds}, [*measured.warnings]
    return small, report


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The dense model as its low-rank class, sharing every parameter: tied ones stay tied."""
    if type(model) in CLASSIFIERS:
        _, config_class, model_class = CLASSIFIERS[type(model)]
    else:
        config_class, model_class = entry_of(family_of(model), MODELS, "a low-rank method")
    config = derived_config(config_class, model)
    with torch.device("meta"):
        twin = model_class(config).train(model.training)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, parameter in twin.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(learns[name])  # else loading would set the dense model's, which are shared
    twin.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    for name, buffer in model.named_buffers(remove_duplicate=False):  # rotary frequencies, which no state dict holds
        path, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(path), leaf, buffer)
    if model.can_generate():
        twin.generation_config = model.generation_config
    return twin
