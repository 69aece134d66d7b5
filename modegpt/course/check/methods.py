"""Checks of notebook 11: labels of a padded batch, Fisher weights, weights on both sides, a model of a given size."""

from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_tensor, number, passed

IGNORED = -100


def labels_of(function: Callable) -> None:
    """Exercise 11.1: `labels_of(ids, mask)` -> labels (samples, length) for a model that shifts them by itself.

    Raises:
        NotYet: naming a shift by hand, padding that is predicted, or padding that predicts.
    """
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]])
    ids = torch.tensor([[7, 4, 9, 3, 5], [6, 8, 2, 1, 1], [1, 1, 5, 7, 3], [1, 9, 0, 6, 1]])  # 0 is a token as well
    labels = answer(function, ids, mask)
    expect_tensor(labels, tuple(ids.shape), "the labels")
    expect(not labels.dtype.is_floating_point, f"labels are whole numbers, these are {labels.dtype}")
    real = mask.bool()
    right = ids.masked_fill(~(real & real.roll(1, 1)), IGNORED)
    ahead, beside = ids.roll(-1, 1), ids.masked_fill(~real, IGNORED)
    ahead[:, -1] = IGNORED

    def same(wrong: Tensor) -> bool:  # label 0 is shifted away: anything may stand there
        return torch.equal(labels[:, 1:], wrong[:, 1:])

    shifted = (ahead, ahead.masked_fill(~real, IGNORED), beside.roll(-1, 1), right.roll(-1, 1))
    expect(
        not any(torch.equal(labels[:, :-1], wrong[:, :-1]) for wrong in shifted),
        "the labels are one token ahead: the model shifts them by itself, so yours ask for the token after next",
    )
    mistakes = (
        (ids, "padding is a label: no loss may count it"),
        (beside, "the first real token behind padding is a label, though only padding could predict it"),
        (ids.masked_fill(right == IGNORED, 0), "0 is a token: what does not count is -100"),
        (right.where(ids != 0, torch.tensor(IGNORED)), "0 is a token of its own: go by the mask, not by the ids"),
        (ids.masked_fill(~real.roll(1, 1), IGNORED), "padding behind a real token is a label: no loss may count it"),
        (right.masked_fill(~real.roll(-1, 1), IGNORED), "the last real token is left out: it is predicted like others"),
    )
    for wrong, message in mistakes:
        expect(not same(wrong), message)
    expect(same(right), "a token is a label if it and the token before it are real; all else is -100")
    passed("each real token is a label once, where a real token comes before it, and the model shifts")


def fisher_from_samples(function: Callable) -> None:
    """Exercise 11.2: `fisher_from_samples(X, D)`, (samples, tokens, in) and (samples, tokens, out) -> (in,) float64.

    Raises:
        NotYet: naming the sum that was squared too late or too early, the wrong axis, or squares that vanish.
    """
    draw = torch.Generator().manual_seed(0)
    for samples, tokens, n, m in ((5, 4, 3, 6), (3, 7, 5, 5)):
        X = torch.randn(samples, tokens, n, generator=draw, dtype=torch.float64) + 0.5
        D = torch.randn(samples, tokens, m, generator=draw, dtype=torch.float64) - 0.3
        found = answer(function, X, D)
        gradients = X.mT @ D  # (samples, in, out)
        if m != n and isinstance(found, Tensor):
            expect(tuple(found.shape) != (m,), "that is a weight for every output: a row of W belongs to an input")
            expect(tuple(found.shape) != (n, m), "that is the weight of every entry: sum each row")
        expect_tensor(found, (n,), "the weights")
        found = found.double()
        right = gradients.square().sum((0, 2))
        mistakes = (
            (gradients.sum(0).square().sum(1), "that squares the gradient of the whole batch: square, then add up"),
            (gradients.mean(0).square().sum(1), "that squares the mean gradient: square, then add up"),
            (
                (X.square().mT @ D.square()).sum((0, 2)),
                "that squares the gradient of every token alone: the tokens of a sample share one loss, add them first",
            ),
            (gradients.square().sum((0, 1)), "that is a weight for every output: a row of W belongs to an input"),
            (gradients.sum(2).square().sum(0), "that adds up a row before it squares: square every entry"),
            (gradients.abs().sum((0, 2)), "that adds up sizes, not squares"),
            (right.sqrt(), "that is D, the root: the weights are the sums themselves"),
            (right / samples, "that is the mean over the samples; the sum is asked for"),
            (right / m, "that is the mean of every row; the sum is asked for"),
            (X.square().sum((0, 1)), "the gradients at the outputs are not used: that is the power of the inputs"),
        )
        for wrong, message in mistakes:
            expect(wrong.shape != found.shape or not close(found, wrong, 1e-6), message)
        expect(close(found, right, 1e-6), "the weights are not the sums of squared gradients, row by row")
    small = answer(function, X.float(), 1e-25 * D.float())
    expect(
        isinstance(small, Tensor) and small.double().min() > 0,
        "small gradients vanish when they are squared in float32: go to float64 first",
    )
    expect(small.dtype == torch.float64, f"the weights are {small.dtype}: float64 is asked for")
    expect(close(1e50 * small, right, 1e-4), "small weights are off: nothing may be added to a sum, or round it up")
    passed("one gradient a sample, squared by itself, a weight for every input")


def weighted_on_both_sides(function: Callable) -> None:
    """Exercise 11.3: `weighted_on_both_sides(weight, outputs, inputs, k)` -> B (out, k), A (k, in).

    Raises:
        NotYet: naming a side, a root or an undoing that is missing.
    """
    draw = torch.Generator().manual_seed(1)
    for m, n, k in ((5, 7, 2), (6, 6, 3)):
        weight = torch.randn(m, n, generator=draw, dtype=torch.float64)
        outputs, inputs = (torch.rand(size, generator=draw, dtype=torch.float64) * 9 + 0.1 for size in (m, n))
        found = answer(function, weight, outputs, inputs, k)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two matrices: B and A")
        expect_tensor(found[0], (m, k), "B")
        expect_tensor(found[1], (k, n), "A")
        product = found[0].double() @ found[1].double()

        def cut(a: Tensor, b: Tensor, undo_a: bool = True, undo_b: bool = True) -> Tensor:
            U, S, Vh = torch.linalg.svd(a[:, None] * weight * b, full_matrices=False)  # noqa: B023
            low = (U[:, :k] * S[:k]) @ Vh[:k]  # noqa: B023
            return low / (a[:, None] if undo_a else 1) / (b if undo_b else 1)

        a, b = outputs.sqrt(), inputs.sqrt()
        U, _, Vh = torch.linalg.svd(a[:, None] * weight * b, full_matrices=False)
        U, Vh = U[:, :k], Vh[:k]
        one, other = torch.ones_like(a), torch.ones_like(b)
        mistakes = (
            (cut(one, other), "that is the plain SVD: no weight was used"),
            (cut(one, b), "the weights of the outputs are not used"),
            (cut(a, other), "the weights of the inputs are not used"),
            (cut(outputs, inputs), "the error is squared: multiply by the roots of the weights"),
            (cut(1 / a, 1 / b), "the weights are turned round: multiply before the SVD, divide after it"),
            (cut(a, b, False, False), "the roots are still in the product: divide by them after the SVD"),
            (cut(a, b, undo_a=False), "the roots of the outputs' weights are still in B: divide by them"),
            (cut(a, b, undo_b=False), "the roots of the inputs' weights are still in A: divide by them"),
            (U @ U.mT @ weight, "that projects W as if no output had a weight: D_1 does not cancel here, undo it in B"),
            (
                weight @ Vh.mT @ Vh,
                "that projects W as if no input had a weight: D_2 does not cancel here, undo it in A",
            ),
            (U @ Vh / a[:, None] / b, "the singular values are missing"),
        )
        if m == n:
            mistakes += ((cut(b, a), "the two weightings have changed places: weight is (out, in)"),)
        for wrong, message in mistakes:
            expect(not close(product, wrong, 1e-6), message)

        def error(low: Tensor) -> float:
            return (outputs[:, None] * inputs * (weight - low).square()).sum().item()  # noqa: B023

        least = error(cut(a, b))
        expect(
            error(product) < (1 + 1e-6) * least,
            f"the weighted error of B A is {error(product):.4g}, the least is {least:.4g}",
        )
    passed("weights that are a product of one for the row and one for the column go into one SVD")


def slicegpt_width(function: Callable) -> None:
    """Exercise 11.4: `slicegpt_width(budget, width, layers, channels, vocabulary)` -> the largest width that fits.

    Raises:
        NotYet: naming what was not counted.
    """
    cases = (
        (13_900_000, 384, 8, 1536, 8192),
        (18_100_000, 384, 8, 1536, 8192),
        (40_000_000, 512, 6, 1536, 30_000),
        (7_000_000, 256, 12, 1024, 5000),
        (2 * 100**2 + 6720 * 100, 384, 1, 1792, 800),  # exactly 100 wide
        (7_077_888 + 2 * 384 * 4000, 384, 4, 1152, 4000),  # exactly as wide as the dense model
        (90_000_000, 256, 12, 1024, 5000),  # more than the dense model needs
    )
    for budget, width, layers, channels, vocabulary in cases:
        block = layers * (4 * width + 2 * channels)  # numbers for each unit of width

        def fits(line: float, square: float, budget: int = budget, widest: int = width) -> int:
            return max((w for w in range(1, widest + 1) if line * w + square * w * w <= budget), default=0)

        right = fits(block + 2 * vocabulary, 2 * layers)
        got = number(answer(function, budget, width, layers, channels, vocabulary), "the width")
        expect(got.is_integer(), f"a width is a whole number, yours is {got:g}")
        scale = layers * (4 * width + 2 * channels) / width
        one_side = "only one side of a block matrix is on the stream and sliced"
        shortcut = "a shortcut leads from one sliced basis to the next: both of its sides are w"
        mistakes = {
            fits(2 * layers * channels + 2 * vocabulary, 6 * layers): one_side,
            fits(block + 2 * layers * width + 2 * vocabulary, 0): shortcut,
            fits(block + 2 * vocabulary, 0): "the shortcuts are not counted: two w x w matrices a layer",
            fits(block + 2 * vocabulary, layers): "a layer has two shortcuts: behind attention and behind the MLP",
            fits(block + vocabulary, 2 * layers): "the head is a table of its own now: embedding and head both count",
            fits(block + vocabulary, 0): "neither the shortcuts nor the untied head are counted",
            fits(block, 2 * layers): "the budget is the whole model's: embedding and head count as well",
            fits(2 * vocabulary, scale + 2 * layers): one_side,
            fits(
                6 * layers * width + 2 * vocabulary, 2 * layers
            ): "the MLP's matrices have channels on their other side",
            fits(
                12 * layers * width + 2 * vocabulary, 2 * layers
            ): "channels is given: it need not be four times width",
            fits(block + layers * channels + 2 * vocabulary, 2 * layers): "an OPT has no gate: two matrices in the MLP",
            right + 1: "that is one too wide: the largest width that still fits",
            right - 1: "one more would still fit",
            fits(block + 2 * vocabulary, 2 * layers, widest=20 * width): "slicing makes no model wider: at most width",
        }
        expect(got == right or got not in mistakes, mistakes.get(int(got), ""))
        expect(got == right, f"for a budget of {budget:,} the largest width is {right}, yours is {got:g}")
    passed("a method's own overhead belongs to its size")
