"""What a compression did, layer by layer, as plain numbers."""

from dataclasses import asdict, dataclass, field

from torch import nn

from modegpt.allocate import MODULES, LayerShape, Ranks, few_tokens


@dataclass
class LayerReport:
    """One compressed layer, calibrated on so many tokens. `damping`: the largest that a Cholesky factor needed."""

    ranks: Ranks
    sparsity: float
    block_influence: float
    damping: float
    tokens: int


@dataclass
class Report:
    """What `compress` did. Ratios are shares removed: of the block matrices, and of all parameters of the model."""

    method: str
    requested_ratio: float
    settings: dict[str, object]
    parameters_before: int
    block_parameters_before: int
    parameters_after: int = 0
    block_parameters_after: int = 0
    tokens: int = 0
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    measured: dict[str, object] = field(default_factory=dict)  # by measured allocation
    streamed: list[dict[str, float]] = field(default_factory=list)  # of each rank: bytes, seconds it waited for reads
    layers: list[LayerReport] = field(default_factory=list)

    def add_layers(self, layers: list[LayerReport], shape: LayerShape) -> None:
        """Note what became of all layers, in order, and whether their tokens determine the Gram matrices."""
        self.layers, self.tokens = layers, layers[0].tokens
        kept = [layer.ranks for layer in self.layers]
        self.block_parameters_after = sum(shape.kept(ranks) for ranks in kept)
        if few_tokens(self.tokens, shape.mlp) and any(r.mlp < shape.mlp for r in kept):
            self.warnings.append(
                f"{self.tokens} calibration tokens hardly determine the Gram matrix of {shape.mlp} MLP "
                "channels, so its regression was damped: expect poor quality, use at least ten tokens a channel"
            )

    @property
    def block_ratio(self) -> float:
        """Share of the block matrices' parameters that is gone."""
        return 1 - self.block_parameters_after / self.block_parameters_before

    @property
    def model_ratio(self) -> float:
        """Share of all the model's parameters that is gone, embeddings and norms included."""
        return 1 - self.parameters_after / self.parameters_before

    def to_dict(self) -> dict[str, object]:
        """Everything as plain JSON types."""
        plain = asdict(self)
        layers = plain.pop("layers")
        plain |= {"block_ratio": self.block_ratio, "model_ratio": self.model_ratio}
        if not layers:  # a method that has no ranks of MoDeGPT's three modules
            return plain
        ranks = [layer["ranks"] for layer in layers]
        if not any(each["shared"] for each in ranks):
            ranks = [{module: each[module] for module in MODULES} for each in ranks]
        return plain | {
            "ranks": ranks,
            "sparsity": [layer["sparsity"] for layer in layers],
            "block_influence": [layer["block_influence"] for layer in layers],
            "damping": [layer["damping"] for layer in layers],
        }

    def __str__(self) -> str:
        before, after = self.parameters_before / 1e6, self.parameters_after / 1e6
        return (
            f"{self.method}: {self.block_ratio:.1%} of the block parameters gone ({self.requested_ratio:.1%} asked), "
            f"{self.model_ratio:.1%} of the whole model: {before:.1f} M -> {after:.1f} M parameters, "
            f"{self.tokens:,} calibration tokens"
        )


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
