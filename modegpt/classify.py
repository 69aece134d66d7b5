"""Classification: batches of labelled texts, fine-tuning, accuracy."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import modegpt.modeling  # noqa: F401  registers the compressed architectures
from modegpt.errors import ModegptError
from modegpt.sources import auto_dtype
from modegpt.sources.hub import clear_errors, quiet_transformers
from modegpt.sources.labelled import Example

BATCH, MAX_TOKENS = 32, 256


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model to be fine-tuned: it pads on the right. Raises ModegptError if it cannot be loaded."""
    with clear_errors(path), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(path: str, tokenizer: PreTrainedTokenizerBase, labels: int, seed: int = 0) -> PreTrainedModel:
    """The model in float32 with a head for so many labels; a head that its folder does not hold is drawn by `seed`.

    Raises:
        ModegptError: what transformers cannot load.
    """
    with clear_errors(path), quiet_transformers():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=labels, dtype=torch.float32)
    model.config.pad_token_id, model.config.use_cache = tokenizer.pad_token_id, False
    return model.eval()


def load_trained(path: str) -> PreTrainedModel:
    """A classifier in float32, with the head in its folder.

    Raises:
        ModegptError: no head there, or what transformers cannot load.
    """
    with clear_errors(path), quiet_transformers():
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModegptError(
            f"'{path}' holds no classification head ({missing[0]} is missing): fine-tune it on the task first"
        )
    return model.eval()


def batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    device: torch.device,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[dict[str, torch.Tensor]]:
    """Right-padded inputs (size, tokens) with labels (size,), `size` examples at a time, in the order given."""
    for start in range(0, len(examples), size):
        texts, labels = zip(*examples[start : start + size], strict=True)
        options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_token_type_ids": False}
        inputs = tokenizer(list(texts), return_tensors="pt", **options) | {"labels": torch.tensor(labels)}
        yield {name: tensor.to(device) for name, tensor in inputs.items()}


def by_length(examples: Sequence[Example]) -> list[Example]:
    """Texts of like length beside one another, so that a batch holds little padding."""
    return sorted(examples, key=lambda example: len(example[0]))


def fine_tune(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Adam with a linear decay to zero, gradients clipped to norm 1, in place. Texts of like length share a batch."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    steps = epochs * math.ceil(len(examples) / BATCH)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    chance = random.Random(seed)
    torch.manual_seed(seed)  # of dropout
    for _ in range(epochs):
        order = sorted(chance.sample(examples, len(examples)), key=lambda example: len(example[0]) // 20)
        inputs_of_epoch = list(batches(order, tokenizer, BATCH, model.device, max_tokens))
        for inputs in chance.sample(inputs_of_epoch, len(inputs_of_epoch)):
            with fast_products(model.device):
                loss = model(**inputs).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()


def fast_products(device: torch.device) -> AbstractContextManager:
    """bfloat16 on a CPU that multiplies it natively. On a GPU short batches wait for kernels, not for products."""
    native = device.type == "cpu" and auto_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = MAX_TOKENS,
) -> float:
    """Share of the examples whose label has the largest logit."""
    right = torch.zeros((), dtype=torch.long, device=model.device)
    for inputs in batches(by_length(examples), tokenizer, 64, model.device, max_tokens):
        labels = inputs.pop("labels")
        right += (model(**inputs).logits.argmax(-1) == labels).sum()
    return int(right) / len(examples)
