"""How much faster a smaller Llama may be at most: its operations in prefill, its bytes in decoding."""

from transformers import PreTrainedConfig

from modegpt.allocate import Ranks


def layer_ranks(config: PreTrainedConfig) -> list[Ranks]:
    """Query-key dims, value dims and MLP channels of every layer, of a dense or a compressed Llama."""
    layers = config.num_hidden_layers
    if getattr(config, "query_key_ranks", None) is None:
        return [Ranks(config.head_dim, config.head_dim, config.intermediate_size)] * layers
    shared = getattr(config, "shared_ranks", None) or [0] * layers
    sizes = zip(config.query_key_ranks, config.value_ranks, config.mlp_ranks, shared, strict=True)
    return [Ranks(*layer) for layer in sizes]


def block_parameters(config: PreTrainedConfig) -> int:
    """Parameters of the linear maps of all layers."""
    heads, width = config.num_attention_heads + config.num_key_value_heads, config.hidden_size

    def query_key(r: Ranks) -> int:
        rows = heads * r.query_key
        return r.shared * (width + rows) if r.shared else width * rows

    return sum(query_key(r) + width * (heads * r.value + 3 * r.mlp) for r in layer_ranks(config))


def prefill_flops(config: PreTrainedConfig, batch: int, tokens: int) -> int:
    """Operations of one forward pass over `batch` prompts that returns the logits of each last token.

    Two for a multiplication with its addition: linear maps, attention below the causal diagonal, output embedding.
    """
    pairs = batch * tokens * (tokens + 1) // 2  # of a query and a key that it sees
    attention = pairs * config.num_attention_heads * sum(r.query_key + r.value for r in layer_ranks(config))
    logits = batch * config.hidden_size * config.vocab_size
    return 2 * (batch * tokens * block_parameters(config) + attention + logits)


def decode_bytes(config: PreTrainedConfig, batch: int, context: float, item: int = 2) -> float:
    """Bytes that one decoding step must read: all matrices but the input embedding, and the filled cache.

    Args:
        config: of a dense or a compressed Llama.
        batch: sequences decoded together.
        context: tokens that a query sees, itself included.
        item: bytes of a number.
    """
    norms = config.hidden_size * (2 * config.num_hidden_layers + 1)
    weights = block_parameters(config) + norms + config.hidden_size * (config.vocab_size + batch)
    cache = batch * context * config.num_key_value_heads * sum(r.query_key + r.value for r in layer_ranks(config))
    return item * (weights + cache)
