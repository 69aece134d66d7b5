"""Recovery: a short LoRA training after compression, and what it brings, on perplexity and on tasks.

The paper recovers with LoRA on 8,000 samples of 1,024 tokens. Here they are drawn from the calibration texts, which
hold fewer tokens than that, so that samples overlap.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity
from modegpt.evaluate.tasks import PAPER_FIVE, zero_shot
from modegpt.study.claims import Laboratory, accuracy_rows
from modegpt.study.experiments import PLUS, RATIO, Case, named
from modegpt.study.results import DENSE, Row, perplexity_row

LENGTH, BATCH, RANK, RATE = 1024, 8, 16, 2e-4
MODELS = {DENSE: (0.0, {}), "modegpt": (RATIO, {}), "modegpt-plus": (RATIO, PLUS)}


def lora(model: PreTrainedModel, samples: Tensor, *, rank: int = RANK, rate: float = RATE, seed: int = 0) -> Any:
    """Train a LoRA on every linear map of the layers once over the samples, and merge it into the weights.

    Args:
        model: any causal language model, compressed or dense; float32 or bfloat16.
        samples: (samples, length) tokens.
        rank: of the update of each matrix; its scale is 2.
        rate: peak learning rate, which falls to zero along a cosine.

    Returns:
        The model with merged weights.

    Raises:
        ModegptError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModegptError("recovery takes PEFT: pip install -c constraints.txt peft") from error
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config).train()
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    batches = samples[torch.randperm(len(samples))].split(BATCH)
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches), pct_start=0.05)
    device = model.device
    for batch in batches:
        ids = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return tuned.merge_and_unload().eval().requires_grad_(False)


def recoveries(laboratory: Laboratory, samples: int, tasks: bool, say: Callable[[str], None]) -> Iterator[Row]:
    """Rows of perplexity on every text, and of the paper's five tasks, for each model without and with LoRA."""
    plan = laboratory.plan
    drawn = replace(plan, calibration_length=LENGTH)
    tokens = Laboratory.tokens(_with(laboratory, drawn), plan.calibration, samples, 1)
    for method, (ratio, options) in MODELS.items():
        small, facts = laboratory.compressed(Case(method, ratio, options=options))
        for variant in ("without", "with LoRA"):
            model = copy.deepcopy(small)
            model = lora(model, tokens) if variant == "with LoRA" else model
            where = {"model": laboratory.name, "method": method, "ratio": ratio, "variant": variant, "seed": 0}
            about = facts | {"lora_tokens": tokens.numel() if variant == "with LoRA" else 0}
            for text in plan.texts:
                found = perplexity(model, laboratory.held_out(text, plan.seq_len), batch_size=plan.batch)
                say(f"{method}, {variant}: {named(text)} {found.perplexity:.2f}")
                yield perplexity_row(found, about, data=named(text), **where)
            if tasks:
                scores = zero_shot(
                    model, laboratory.tokenizer, PAPER_FIVE, limit=plan.questions, batch_size=8 * plan.batch
                )
                rows = accuracy_rows(scores, about, **where)
                say(f"{method}, {variant}: tasks {rows[-1].value:.4f}")
                yield from rows


def _with(laboratory: Laboratory, plan: Any) -> Laboratory:
    other = copy.copy(laboratory)
    other.plan = plan
    return other
