"""LoRA after compression, the paper's optional last step: a short fine-tuning with PEFT, merged into the weights."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from modegpt.errors import ModegptError

RANK, ALPHA = 16, 32
EPOCHS, BATCH, LEARNING_RATE = 4, 8, 2e-4
LENGTH = 1024  # of a window, as in the paper


def recover(model: PreTrainedModel, windows: Tensor, seed: int = 0) -> PreTrainedModel:
    """Fine-tune low-rank adapters of every linear map, and merge them: the model keeps its shapes.

    Args:
        model: dense or compressed, on the device to train on; it is changed.
        windows: token ids, (windows, length).

    Raises:
        ModegptError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModegptError("recovering needs PEFT: pip install peft") from error

    torch.manual_seed(seed)
    targets = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, targets).train()
    steps = EPOCHS * -(-len(windows) // BATCH)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=LEARNING_RATE)
    plan = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    for _ in range(EPOCHS):
        for ids in windows[torch.randperm(len(windows))].to(model.device).split(BATCH):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype != torch.float32):
                adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
            optimizer.step()
            plan.step()
            optimizer.zero_grad()
    return adapted.merge_and_unload().eval()
