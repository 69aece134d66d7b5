"""A Llama or an OPT whose block linears are pairs of thin ones: the checkpoint format of the low-rank methods.

This file is made to travel with a checkpoint, so it imports torch and transformers only. It calls the stock
constructor and swaps every linear that the config gives a rank.
"""

from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    OPTConfig,
    OPTForCausalLM,
    OPTForSequenceClassification,
)


class LowRankLinear(nn.Module):
    """y = left(right(x)): in -> rank -> out, the bias on the second map."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.right = nn.Linear(in_features, rank, bias=False)
        self.left = nn.Linear(rank, out_features, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.left(self.right(hidden_states))


def swap_linears(layers: nn.ModuleList, ranks: dict[str, list[int]]) -> None:
    """Put a `LowRankLinear` wherever the config lists a rank; 0 leaves the linear dense."""
    for name, sizes in ranks.items():
        listed = isinstance(sizes, list | tuple) and len(sizes) == len(layers)
        if not listed or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"config.ranks['{name}'] must list one integer >= 0 for each of {len(layers)} layers")
        for layer, rank in zip(layers, sizes, strict=True):
            dense = dict(layer.named_modules()).get(name)
            if not isinstance(dense, nn.Linear):
                raise ValueError(f"config.ranks names '{name}', which is no linear map of a layer")
            if rank:
                small = LowRankLinear(dense.in_features, dense.out_features, rank, dense.bias is not None)
                layer.set_submodule(name, small)


class LowRankLlamaConfig(LlamaConfig):
    """A LlamaConfig plus the ranks of the block linears.

    Args:
        ranks: name of the linear inside its layer, such as "self_attn.q_proj" -> one rank a layer, 0 for dense.
            Linears that are not named stay dense.
    """

    model_type = "lowrank_llama"
    base_model_tp_plan = None  # thin pairs do not shard by the stock plan

    # a plain annotation with a default: LlamaConfig is a dataclass in transformers >= 5.4
    ranks: dict | None = None


class LowRankLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with the low-rank linears that the config describes."""

    config_class = LowRankLlamaConfig

    def __init__(self, config: LowRankLlamaConfig):
        super().__init__(config)
        swap_linears(self.model.layers, config.ranks or {})
        self.post_init()


class LowRankLlamaModel(LlamaModel):
    """`LlamaModel` with the low-rank linears that the config describes."""

    config_class = LowRankLlamaConfig

    def __init__(self, config: LowRankLlamaConfig):
        super().__init__(config)
        swap_linears(self.layers, config.ranks or {})
        self.post_init()


AutoModel.register(LowRankLlamaConfig, LowRankLlamaModel, exist_ok=True)  # the stock classifier asks AutoModel


class LowRankLlamaForSequenceClassification(LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` with the low-rank linears that the config describes."""

    config_class = LowRankLlamaConfig


class LowRankOPTConfig(OPTConfig):
    """An OPTConfig plus the ranks of the block linears.

    Args:
        ranks: name of the linear inside its layer, such as "fc1" -> one rank a layer, 0 for dense. Linears that are
            not named stay dense.
    """

    model_type = "lowrank_opt"

    ranks: dict | None = None


class LowRankOPTForCausalLM(OPTForCausalLM):
    """`OPTForCausalLM` with the low-rank linears that the config describes."""

    config_class = LowRankOPTConfig

    def __init__(self, config: LowRankOPTConfig):
        super().__init__(config)
        swap_linears(self.model.decoder.layers, config.ranks or {})
        self.post_init()


class LowRankOPTForSequenceClassification(OPTForSequenceClassification):
    """`OPTForSequenceClassification` with the low-rank linears that the config describes."""

    config_class = LowRankOPTConfig

    def __init__(self, config: LowRankOPTConfig):
        super().__init__(config)
        swap_linears(self.model.decoder.layers, config.ranks or {})
        self.post_init()
