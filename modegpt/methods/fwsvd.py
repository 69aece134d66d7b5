"""FWSVD (Hsu et al., ICLR 2022, arXiv 2207.00112): truncate W where the *loss* feels it least.

The Fisher information of a weight is the sum over samples of its squared gradient. In the paper's layout, y = x W with
W (in, out), a row belongs to an input feature, and the weights of a row share one importance, the row's sum I_i. With
D = diag(sqrt(I_i)) the SVD of D W is truncated. A row of theirs is a column of `torch.nn.Linear.weight`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt import classify
from modegpt.calibrate import Tokens, token_batches
from modegpt.errors import ModegptError
from modegpt.inference import eval_mode
from modegpt.machine import Stopwatch
from modegpt.methods.low_rank import Factors, block_linears, compress, ordered_factors
from modegpt.sources.labelled import Example

__all__ = [
    "batched_fisher_rows",
    "compress",
    "fisher_rows",
    "fisher_weighted_factors",
    "measure",
    "measure_task",
    "weighted_by_rows",
]

IGNORED = -100  # the label that no Hugging Face loss counts
FLOOR = 1e-6  # least weight of a row, relative to the mean

Inputs = Mapping[str, Tensor]


def fisher_weighted_factors(weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W whose first r minimise ||D (W - A B)||_F, with D = diag(sqrt(rows)).

    A row that no sample's loss depends on (I_i = 0, such as a ReLU channel that never fires) would leave its part of
    the factors to chance, and the paper's A = D^-1 U S would divide by zero. Such rows get a tiny weight instead: they
    decide nothing while another row does, and keep what the others leave room for. `ordered_factors` shows why D^-1
    cancels.

    Args:
        weight: the paper's W^T, (out, in), as in `torch.nn.Linear`.
        rows: Fisher information of each input feature, (in,), float64 advised.

    Returns:
        left = B^T (out, k), right = A^T (k, in), in the dtype of `rows`.
    """
    return ordered_factors(weight, weighted_by_rows(weight, rows))


def weighted_by_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """W^T D, (out, in), in the dtype of `rows`: what FWSVD truncates. See `fisher_weighted_factors`."""
    root = rows.sqrt()
    floor = FLOOR * root.mean().item() or 1.0  # no gradient at all: plain SVD
    return weight.to(rows) * root.clamp(min=floor)


def own_loss(model: nn.Module, inputs: Inputs) -> Tensor | None:
    """The scalar loss that a Hugging Face model makes of its `labels`; causal models shift them by themselves."""
    return model(**inputs).loss


def fisher_rows(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Inputs],
    loss: Callable[[nn.Module, Inputs], Tensor | None] = own_loss,
) -> dict[str, Tensor]:
    """Empirical Fisher information of the named linears' input features: sum of squared gradients.

    A square of sums is no sum of squares, so give one sample at a time. One backward pass for each; a gradient, in the
    model's dtype, is squared in float64 and dropped as soon as it is there. The loss is a mean over a sample's labels,
    so short samples weigh as much as long ones. The model is left as it was, gradients included.

    Args:
        model: any model, for language or classification; it runs in eval mode, without dropout.
        names: full names of its `nn.Linear` modules.
        batches: inputs of the model, one sample each, with the key `labels`; a sample whose labels are all -100 says
            nothing and is passed over.
        loss: scalar loss of one sample.

    Returns:
        {name: (in,)} float64.

    Raises:
        ModegptError: no sample with a label; a loss or gradient that is NaN or inf.
    """
    weights = {name: model.get_submodule(name).weight for name in names}
    rows = {name: torch.zeros(w.shape[1], dtype=torch.float64, device=w.device) for name, w in weights.items()}
    counted = 0

    def add(name: str) -> Callable[[Tensor], None]:
        def square(weight: Tensor) -> None:
            rows[name] += weight.grad.double().square().sum(0)
            weight.grad = None

        return square

    with eval_mode(model), _only_these_learn(model, weights.values()), torch.enable_grad():
        hooks = [weight.register_post_accumulate_grad_hook(add(name)) for name, weight in weights.items()]
        try:
            for sample, inputs in enumerate(batches):
                if "labels" in inputs and not (inputs["labels"] != IGNORED).any():
                    continue
                value = loss(model, inputs)
                if value is None:
                    raise ModegptError(f"sample {sample}: the model made no loss, its inputs need labels")
                if not torch.isfinite(value):
                    raise ModegptError(f"sample {sample}: its loss is NaN or inf")
                value.backward()
                counted += 1
        finally:
            for hook in hooks:
                hook.remove()
    if not counted:
        raise ModegptError("no sample has a label to learn from: all are padding, or shorter than two tokens")
    for name, row in rows.items():
        if not torch.isfinite(row).all():
            raise ModegptError(f"{name}: its gradients hold NaN or inf")
    return rows


def batched_fisher_rows(model: nn.Module, names: Iterable[str], batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """As `fisher_rows`, for classifiers: many samples in one backward pass, and still each sample squared alone.

    The gradient of one sample is G = sum over tokens t of x_t g_t^T, with inputs x_t (in,) and gradients g_t (out,) of
    the outputs. Its rows are squared without forming it: sum_j G_ij^2 = sum over t, t' of x_ti (g_t . g_t') x_t'i.

    Args:
        model: its loss is the mean of the samples' own losses, and no sample sees another (no batch norm). Each linear
            runs once in a forward pass.
        names: full names of its `nn.Linear` modules.
        batches: inputs of the model, many samples each, with the key `labels` (samples,).

    Returns:
        {name: (in,)} float64.

    Raises:
        ModegptError: no sample; a loss or gradient that is NaN or inf.
    """
    linears = {name: model.get_submodule(name) for name in names}
    weights = {name: linear.weight for name, linear in linears.items()}
    rows = {name: torch.zeros(w.shape[1], dtype=torch.float64, device=w.device) for name, w in weights.items()}
    samples = 0  # of the batch at hand

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def forward(_linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen = inputs[0].detach()

            def backward(gradient: Tensor) -> None:
                x, g = (part.double().reshape(samples, -1, part.shape[-1]) for part in (seen, gradient))
                rows[name] += (x * ((g @ g.mT) @ x)).sum((0, 1))

            output.register_hook(backward)

        return forward

    with eval_mode(model), _only_these_learn(model, weights.values()), torch.enable_grad():
        hooks = [linear.register_forward_hook(watch(name)) for name, linear in linears.items()]
        try:
            for inputs in batches:
                samples = len(inputs["labels"])
                mean = own_loss(model, inputs)
                if not torch.isfinite(mean):
                    raise ModegptError("the loss of a batch is NaN or inf")
                torch.autograd.backward(mean * samples)
                for weight in weights.values():
                    weight.grad = None
        finally:
            for hook in hooks:
                hook.remove()
    if not samples:
        raise ModegptError("no sample has a label to learn from")
    for name, row in rows.items():
        if not torch.isfinite(row).all():
            raise ModegptError(f"{name}: its gradients hold NaN or inf")
    return rows


@contextmanager
def _only_these_learn(model: nn.Module, weights: Iterable[Tensor]) -> Iterator[None]:
    """Gradients for these weights only, and everything as before at the end."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        yield
    finally:
        for parameter, learns, grad in before:
            parameter.grad = grad
            parameter.requires_grad_(learns)


def measure_task(
    model: PreTrainedModel, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, progress: bool = False
) -> Factors:
    """The Fisher-weighted factors of every block linear of a classifier, from its loss on the task it was trained for.

    `compress` makes the small classifier of them, as of those of a language model.

    Args:
        model: a Llama or OPT with a classification head, fine-tuned.
        examples: (text, label) of the training set; labels 0, 1, ... as in the head.

    Raises:
        ModegptError: a head that does not fit the labels, fewer examples than labels, an unsupported model, NaN or inf.
    """
    kinds, labels = model.config.num_labels, {label for _, label in examples}
    if len(examples) < kinds:
        raise ModegptError(f"the model tells {kinds} labels apart, and there are only {len(examples)} examples")
    if labels != set(range(kinds)):
        found = ", ".join(map(str, sorted(labels)[:10]))
        raise ModegptError(f"the model's head is for the labels 0 to {kinds - 1}, the task has {found}")
    linears, clock, factors = block_linears(model), Stopwatch(), Factors("fwsvd")
    inputs = list(classify.batches(classify.by_length(examples), tokenizer, classify.BATCH, model.device))
    factors.tokens = sum(int(batch["attention_mask"].sum()) for batch in inputs)
    bar = {"transient": True, "disable": not progress}
    with clock("calibrate"):
        rows = batched_fisher_rows(model, linears, track(inputs, "gradients", **bar))
    return _decompose(factors, linears, rows, clock, bar)


def samples_with_labels(model: PreTrainedModel, data: Tokens) -> list[dict[str, Tensor]]:
    """Inputs of a causal model, (1, length) each, whose labels are the input ids: the model shifts them by itself.

    A token is a label if it and the token before it are real: padding is neither predicted nor predicts.
    """
    samples = []
    for batch in token_batches(model, data, 1):
        real = batch["attention_mask"].bool()
        counts = real & real.roll(1, dims=1)
        counts[:, 0] = False  # nothing comes before
        samples.append(batch | {"labels": batch["input_ids"].masked_fill(~counts, IGNORED), "use_cache": False})
    return samples


def _shifted_by_hand(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The known fault: labels that are one token ahead already, for a model that shifts them once more."""
    cut = {name: value[:, :-1] for name, value in inputs.items() if isinstance(value, Tensor)}
    return cut | {"labels": inputs["labels"][:, 1:], "use_cache": False}


def measure(
    model: PreTrainedModel, data: Tokens, *, batch_size: int = 4, progress: bool = False, shifted: bool = False
) -> Factors:
    """The Fisher-weighted factors of every block linear, from the gradients of the next-token loss.

    Args:
        data: calibration tokens, (samples, length) int64 or a mapping with `attention_mask`: see `calibrate.walk`.
        batch_size: not looked at, a gradient is one sample's.
        shifted: reproduce the *known fault* of a widely copied version, to see what it costs: it shifts the labels
            although the model does, so its gradients are those of the token after next.

    Raises:
        ModegptError: unsupported model, no token to predict, NaN or inf in weights, loss or gradients.
    """
    linears, clock = block_linears(model), Stopwatch()
    factors = Factors("fwsvd-shifted" if shifted else "fwsvd")
    samples = samples_with_labels(model, data)
    factors.tokens = sum(int(sample["attention_mask"].sum()) for sample in samples)
    if shifted:
        samples = [_shifted_by_hand(sample) for sample in samples]
    bar = {"transient": True, "disable": not progress}
    with clock("calibrate"):
        rows = fisher_rows(model, linears, track(samples, "gradients", **bar))
    return _decompose(factors, linears, rows, clock, bar)


def _decompose(
    factors: Factors, linears: Mapping[str, nn.Linear], rows: Mapping[str, Tensor], clock: Stopwatch, bar: Mapping
) -> Factors:
    for name, linear in track(linears.items(), "decompose", **bar):
        with clock("decompose"):
            left, right = fisher_weighted_factors(linear.weight, rows[name])
            factors[name] = left.float(), right.float()
    factors.seconds = dict(clock.seconds)
    return factors
