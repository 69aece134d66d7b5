"""Perplexity by the protocol of the field: non-overlapping windows, float32 loss, nothing dropped."""

import math
from dataclasses import dataclass, field

import torch
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.inference import check_tokens, in_eval_mode

LOGIT_ROWS = 512  # rows of logits that are upcast together: a window of a large vocabulary is gigabytes in float32


@dataclass(frozen=True)
class Perplexity:
    """Perplexity with what it was measured on.

    `standard_error` is of the perplexity, from the spread of the windows' mean losses (nan for one window).
    `tokens` counts predicted tokens, windows * (seq_len - 1); `bos` says whether the text starts with the model's
    BOS token; `losses` are the windows' mean losses in nats, for comparing two models window by window.
    """

    perplexity: float
    standard_error: float
    tokens: int
    windows: int
    seq_len: int
    bos: bool
    losses: list[float] = field(repr=False)


@in_eval_mode
@torch.no_grad()
def perplexity(model: PreTrainedModel, windows: Tensor, *, batch_size: int = 1, progress: bool = False) -> Perplexity:
    """Perplexity of `model` on token windows; each window is predicted on its own, from its second token on.

    Args:
        model: any causal language model; it runs in eval mode, without dropout, and is then in the mode that it was.
        windows: (windows, seq_len) int64, as `sources.token_windows` cuts them.
        batch_size: windows that run together.
        progress: show a progress bar.

    Raises:
        ModegptError: no windows, or tokens or positions that the model does not have; a loss is NaN or inf. No window
            is ever dropped. Positions beyond those that a rotary model was made for are a ModegptWarning.
    """
    check_tokens(model, windows, "evaluation tokens")
    if windows.shape[1] < 2:
        raise ModegptError("a window takes at least two tokens: one to read, one to predict")
    losses = []
    for batch in track(windows.split(batch_size), "evaluate", transient=True, disable=not progress):
        batch = batch.to(model.device).long()
        logits = model(batch, use_cache=False).logits[:, :-1]
        losses.append(_token_losses(logits, batch[:, 1:]).mean(1))
    loss = torch.cat(losses)
    if not torch.isfinite(loss).all():
        bad = int((~torch.isfinite(loss)).nonzero()[0])
        raise ModegptError(f"the loss of window {bad} is not finite: the model is broken or its dtype overflows")
    count, seq_len = windows.shape
    value = loss.mean().exp().item()  # inf, not an error, where it overflows
    spread = (loss.std() / count**0.5).item() if count > 1 else math.nan
    bos = model.config.bos_token_id
    return Perplexity(
        perplexity=value,
        standard_error=value * spread,
        tokens=count * (seq_len - 1),
        windows=count,
        seq_len=seq_len,
        bos=bos is not None and int(windows[0, 0]) == bos,
        losses=[round(part, 5) for part in loss.tolist()],
    )


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each token in float32, a few rows at a time: (batch, tokens) -> (batch, tokens) float64."""
    rows = zip(logits.flatten(0, 1).split(LOGIT_ROWS), targets.flatten().split(LOGIT_ROWS), strict=True)
    parts = [torch.nn.functional.cross_entropy(x.float(), y, reduction="none") for x, y in rows]
    return torch.cat(parts).double().view(targets.shape)
