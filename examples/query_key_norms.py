"""What to divide queries and keys by, when a Qwen3 loses some of their dims: five ways on a tiny trained one.

    python examples/query_key_norms.py [STEPS [WINDOWS]]

Qwen3 divides each query and key by its root mean square over all d dims of a head. The first way carries that number
over from the dense model, so it saves nothing; the others know the r dims that are kept.
"""

import copy
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from modegpt import compress, load_text, perplexity, token_windows
from modegpt.calibrate import collect
from modegpt.decompose import cr_select, kept_rms
from modegpt.families import family_of

D, WINDOW = 32, 128
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "head_dim": D, "vocab_size": 512}
WAYS = (
    "RMS of all dims, carried",
    "affine fit of it, two numbers a head",
    "RMS of the kept, one number a head",
    "RMS of the kept, scale 1/sqrt(r)",
    "RMS of the kept, scale 1/sqrt(d)",
)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}


class Norm(nn.Module):
    """A query-key norm that keeps some dims of each head, (heads, d), and divides by what `way` says."""

    def __init__(self, weight, kept, gain, line):
        super().__init__()
        self.weight, self.kept, self.gain, self.line, self.way = weight, kept, gain, line, None

    def forward(self, states):
        rank = self.kept[0].sum()
        full = states.square().mean(-1, keepdim=True).sqrt()
        part = ((states * self.kept).square().sum(-1, keepdim=True) / rank).sqrt()
        if self.line is None:  # least squares of the whole on the part, for each head
            x, y = (t.flatten(0, 1)[..., 0] for t in (part, full))
            slope = ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / (x - x.mean(0)).square().sum(0)
            self.line = slope[:, None], (y.mean(0) - slope * x.mean(0))[:, None]
        fitted = self.line[0] * part + self.line[1]
        divisors = (full, fitted, part / self.gain[:, None], part * (rank / D) ** 0.25, part)
        return states * self.weight * self.kept / divisors[WAYS.index(self.way)]


def byte_pairs(text):
    """A tokenizer of 512 byte pairs."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        text.splitlines(), trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def trained(tokens, steps):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, max_position_embeddings=WINDOW)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (16,))]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step()
    return model.eval().requires_grad_(False)


def with_norms(model, statistics, rank):
    """A copy whose query-key norms keep `rank` dims of each head."""
    model = copy.deepcopy(model)
    for layer, seen in zip(model.model.layers, statistics, strict=True):
        dims = cr_select(seen.query, seen.key, rank)
        kept = torch.zeros(len(dims), D).scatter_(1, dims, 1.0)
        group, attention = seen.query.shape[1], layer.self_attn
        gains = kept_rms(seen.query_projected, dims).flatten().float(), kept_rms(seen.key_projected, dims).float()
        attention.q_norm = Norm(attention.q_norm.weight, kept.repeat_interleave(group, 0), gains[0], None)
        attention.k_norm = Norm(attention.k_norm.weight, kept, gains[1], None)
    return model


def main(steps=600, windows=200):
    text = load_text("wiki-passages", "calibration")
    tokenizer = byte_pairs(text[:1_000_000])
    train = token_windows(text, tokenizer, 4000, WINDOW, 0, what="text")
    held_out = token_windows(load_text("wiki-passages", "evaluation"), tokenizer, windows, WINDOW, what="text")
    dense = trained(train, steps)
    calibration = train[:128]
    statistics = collect(dense, calibration)
    print(f"dense: {perplexity(dense, held_out, batch_size=50).perplexity:.3f} after {steps} steps")
    shape = family_of(dense).shape(dense)
    for rank in (24, 16, 8):
        model = with_norms(dense, statistics, rank)
        norms = [module for module in model.modules() if isinstance(module, Norm)]
        for way in WAYS:
            for norm in norms:
                norm.way = way
            if norm.line is None:
                model(calibration)  # fits the lines
            print(f"{rank} of {D}, {way}: {perplexity(model, held_out, batch_size=50).perplexity:.3f}")
        ratio = shape.query_key_cost * (D - rank) / shape.total
        options = {"modules": ("query_key",), "allocation": "uniform", "multiple_of": 2}
        small, _ = compress(copy.deepcopy(dense), statistics, ratio=ratio, **options)
        assert small.config.query_key_ranks == [rank] * 3
        print(f"{rank} of {D}, modegpt.compress: {perplexity(small, held_out, batch_size=50).perplexity:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
