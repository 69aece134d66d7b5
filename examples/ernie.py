"""A dialect of one's own: Ernie 4.5, a Llama that turns dims 2i and 2i + 1 together, and may have biases."""

from modegpt.cli import main
from modegpt.families.dialects import DIALECTS, Dialect, part


def entries(config):
    return {"attention_bias": config.use_bias, "mlp_bias": config.use_bias}


def tensor(name, read, config):
    """A Llama turns dims i and i + d/2 together: the even dims of each head come first, then the odd ones."""
    rows = read(name)
    if part(name) not in ("q_proj", "k_proj"):
        return rows
    return rows.view(-1, config.head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


DIALECTS["ernie4_5"] = Dialect("Ernie 4.5", entries=entries, tensor=tensor, known=frozenset(["use_bias"]))

if __name__ == "__main__":
    main()
