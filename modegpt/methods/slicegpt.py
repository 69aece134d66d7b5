"""SliceGPT: rotate the residual stream into its principal components, and drop the smallest (arXiv 2401.15024).

A norm without scale and mean commutes with an orthogonal Q: rms(x Q) = rms(x) Q (section 3.1). So every weight that
writes to the stream may be multiplied by Q and every one that reads it by Q^T, and nothing changes. Here each block
has a Q of its own, the principal components of what it reads (section 3.3), of which the k largest are kept
(section 3.4); a residual passes from one block's basis to the next by the shortcut Q^T Q_next.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modegpt.allocate import TOKENS_PER_CHANNEL, check_ratio
from modegpt.calibrate import Real, Tokens, plain_rows, stream
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.families.base import Tap, derived_config, entry_of
from modegpt.machine import Stopwatch, peak_memory_bytes
from modegpt.modeling import SliceGPTLlamaConfig, SliceGPTLlamaForCausalLM, SliceGPTOPTConfig, SliceGPTOPTForCausalLM
from modegpt.report import Report, count_parameters


@dataclass(frozen=True)
class Block:
    """One block of a layer: the norm it starts with, the linear maps that read the stream, the one that writes."""

    norm: str
    readers: tuple[str, ...]
    writer: str
    shortcut: str


@dataclass(frozen=True)
class Wiring:
    """What of a family's model touches the residual stream; all names but the blocks' are those of `decoder`."""

    decoder: str
    embeddings: tuple[str, ...]
    blocks: tuple[Block, Block]
    norm: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
WIRINGS = {
    "llama": Wiring(
        "model",
        ("embed_tokens",),
        (
            Block("input_layernorm", QKV, "self_attn.o_proj", "attention_shortcut"),
            Block("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "mlp_shortcut"),
        ),
        "norm",
        SliceGPTLlamaConfig,
        SliceGPTLlamaForCausalLM,
    ),
    "opt": Wiring(
        "model.decoder",
        ("embed_tokens", "embed_positions"),
        (
            Block("self_attn_layer_norm", QKV, "self_attn.out_proj", "attention_shortcut"),
            Block("final_layer_norm", ("fc1",), "fc2", "mlp_shortcut"),
        ),
        "final_layer_norm",
        SliceGPTOPTConfig,
        SliceGPTOPTForCausalLM,
    ),
}


@dataclass
class PrincipalComponents:
    """PCA of what each norm gives its block: attention and MLP of every layer in turn, and last the head.

    Each of the 2 layers + 1 `bases`, (D, D) float64, holds the components as columns, the largest first; `variances`,
    (D,) each, are the mean squares along them.
    """

    signal: str
    bases: list[Tensor]
    variances: list[Tensor]
    tokens: int
    seconds: dict[str, float]


def measure(
    model: PreTrainedModel,
    data: Tokens,
    *,
    signal: Literal["stream", "norm"] = "stream",
    batch_size: int = 4,
    progress: bool = False,
) -> PrincipalComponents:
    """Find the principal components of the signal at every block, once for all ratios; the model stays as it is.

    The authors' code takes the residual stream x itself (`signal="stream"`), so a token counts by its squared length;
    section 3.3 takes "the output of the l-th RMSNorm", x / rms(x) once its scale has been fused into the weights that
    follow (`signal="norm"`), so every token counts alike. The code's choice is the default because it is the stronger:
    on SmolLM2 at 20 %, 16 x 512 calibration tokens, a perplexity of 160 instead of 339. For a LayerNorm, x is centred
    first (section 3.2). Q_l are the eigenvectors of X_l^T X_l (equation 8). All signals are those of the dense model;
    the authors' code takes them behind layers that are already sliced.

    Args:
        model: a dense model of the Llama family, or of the OPT family with its norms before the blocks.
        data: (samples, length) int64, or a mapping with `input_ids` and `attention_mask`; padding counts nowhere.
        signal: what the components are those of: the "stream", or what the "norm" gives.
        batch_size: samples that run together.

    Raises:
        ModegptError: a model or a signal that is not supported; NaN or inf (the layer is named).
    """
    if signal not in ("norm", "stream"):
        raise ModegptError(f"signal is norm or stream, got '{signal}'")
    family, wiring, clock = family_of(model), _wiring(model), Stopwatch()
    layers, final_norm = family.layers(model), model.get_submodule(f"{wiring.decoder}.{wiring.norm}")
    measured = PrincipalComponents(signal, [], [], 0, {})

    def taps(layer: nn.Module) -> dict[str, Tap]:
        norms = {block.norm: (layer.get_submodule(block.norm), "input") for block in wiring.blocks}
        return norms | ({"head": (layer, "output")} if layer is layers[-1] else {})

    def rows(layer: nn.Module, seen: dict[str, Tensor], real: Real) -> Iterator[tuple[str, Tensor]]:
        for name, states in plain_rows(layer, seen, real):
            norm = final_norm if name == "head" else layer.get_submodule(name)
            yield name, _signal(states.double(), norm, signal)

    options = {"batch_size": batch_size, "product_dtype": torch.float64, "progress": progress}
    with clock("calibrate"):
        for _, observed in stream(model, family, data, taps, rows, **options):
            for gram in observed.grams.values():  # in the order in which the stream passed them
                variances, basis = torch.linalg.eigh(gram)
                measured.bases.append(basis.flip(1))
                measured.variances.append(variances.flip(0))
            measured.tokens = observed.tokens
    measured.seconds = dict(clock.seconds)
    return measured


def compress(model: PreTrainedModel, measured: PrincipalComponents, ratio: float) -> tuple[PreTrainedModel, Report]:
    """Slice the residual stream to the largest width whose blocks, shortcuts included, fit the budget.

    The dense model stays as it is. At ratio 0 it is itself the result: where nothing is sliced there is nothing to
    rotate, and no shortcut is needed.

    Args:
        model: the dense model that was measured.
        measured: what `measure` found on it.
        ratio: share of the block matrices' parameters to remove, in [0, 1).

    Raises:
        ModegptError: a model that is not supported or was not measured; a ratio that leaves no width.
    """
    check_ratio(ratio)
    family, clock = family_of(model), Stopwatch()
    full, layers = model.config.hidden_size, len(family.layers(model))
    dense = family.shape(model).total * layers
    # every block matrix has one side on the stream; two shortcuts a layer
    costs = [dense // full * width + 2 * layers * width**2 for width in range(1, full + 1)]
    width = sum(cost <= dense - ratio * dense for cost in costs) if ratio else full
    if not width:
        raise ModegptError(f"SliceGPT cannot remove {ratio:g} of the block parameters: no width would be left")
    settings = {"signal": measured.signal, "sliced_size": width}
    report = Report("slicegpt", ratio, settings, count_parameters(model), dense)
    with clock("slice"):
        sliced = slice_to(model, measured, width) if ratio else model
    report.parameters_after = count_parameters(sliced)
    report.block_parameters_after = costs[width - 1] if ratio else dense
    report.tokens, report.seconds = measured.tokens, measured.seconds | clock.seconds
    report.peak_memory_bytes = peak_memory_bytes()
    if ratio and model.lm_head.weight is model.get_input_embeddings().weight:
        extra = sliced.lm_head.weight.numel()
        report.warnings.append(f"embeddings and head were one matrix and are two now, {extra / 1e6:.1f} M parameters")
    if measured.tokens < TOKENS_PER_CHANNEL * full:
        report.warnings.append(
            f"{measured.tokens} calibration tokens hardly determine the principal components of {full} dims: expect "
            "poor quality, use at least ten tokens a dim"
        )
    return sliced, report


@torch.no_grad()
def slice_to(model: PreTrainedModel, measured: PrincipalComponents, width: int) -> PreTrainedModel:
    """The model whose residual stream is reduced to its `width` principal components; at full width, only rotated.

    Raises:
        ModegptError: a model that is not supported or was not measured.
    """
    wiring, full = _wiring(model), model.config.hidden_size
    layers = family_of(model).layers(model)
    if len(measured.bases) != 2 * len(layers) + 1 or len(measured.bases[0]) != full:
        raise ModegptError("the principal components are not those of this model")
    bases = [basis[:, :width] for basis in measured.bases]
    decoder, dtype = model.get_submodule(wiring.decoder), model.dtype
    final_norm, state = decoder.get_submodule(wiring.norm), {}
    centred = isinstance(final_norm, nn.LayerNorm)

    def put(name: str, tensor: Tensor) -> None:
        state[name] = tensor.to(dtype).contiguous()

    def put_reader(name: str, linear: nn.Linear, norm: nn.Module, basis: Tensor) -> None:
        """W diag(scale) Q and b + W bias: the norm's scale and bias are folded in."""
        weight = linear.weight.double()
        put(f"{name}.weight", weight * norm.weight.double() @ basis)
        if centred or linear.bias is not None:
            bias = 0 if linear.bias is None else linear.bias.double()
            put(f"{name}.bias", bias + weight @ norm.bias.double() if centred else bias)

    def written(rows: Tensor, basis: Tensor) -> Tensor:
        """Rows that are added to the stream, (..., D) -> (..., width), less the mean that a LayerNorm subtracts."""
        rows = rows.double()
        return (rows - rows.mean(-1, keepdim=True) if centred else rows) @ basis

    for name in wiring.embeddings:
        put(f"{wiring.decoder}.{name}.weight", written(decoder.get_submodule(name).weight, bases[0]))
    blocks = ((index, block) for index in range(len(layers)) for block in wiring.blocks)
    for (index, block), basis, following in zip(blocks, bases[:-1], bases[1:], strict=True):
        layer, place = layers[index], f"{wiring.decoder}.layers.{index}"
        for name in block.readers:
            put_reader(f"{place}.{name}", layer.get_submodule(name), layer.get_submodule(block.norm), basis)
        writer = layer.get_submodule(block.writer)
        put(f"{place}.{block.writer}.weight", written(writer.weight.T, following).T)
        if writer.bias is not None:
            put(f"{place}.{block.writer}.bias", written(writer.bias, following))
        put(f"{place}.{block.shortcut}.weight", following.T @ basis)
    put_reader("lm_head", model.lm_head, final_norm, bases[-1])

    config = derived_config(wiring.config_class, model, sliced_size=width, tie_word_embeddings=False)
    with torch.device("meta"):
        sliced = wiring.model_class(config).to(dtype).eval()
    sliced.load_state_dict(state, assign=True)
    if hasattr(decoder, "rotary_emb"):  # its frequencies are in no state
        sliced.get_submodule(wiring.decoder).rotary_emb = copy.deepcopy(decoder.rotary_emb)
    sliced.generation_config = copy.deepcopy(model.generation_config)
    return sliced


def _wiring(model: PreTrainedModel) -> Wiring:
    """Where the model touches its residual stream, or an error if its blocks do not start with their norms."""
    family = family_of(model)
    if not family.norms_first(model.config):
        raise ModegptError("SliceGPT needs norms before the blocks and the head, and embeddings of full width")
    return entry_of(family, WIRINGS, "SliceGPT")


def _signal(states: Tensor, norm: nn.Module, signal: str) -> Tensor:
    """What the components are those of, (tokens, D): see `measure`."""
    if isinstance(norm, nn.LayerNorm):
        states, eps = states - states.mean(-1, keepdim=True), norm.eps
    else:
        eps = norm.variance_epsilon
    return states if signal == "stream" else nn.functional.rms_norm(states, states.shape[-1:], eps=eps)
