import math

import torch
from answers import Answers

from modegpt.course.check import methods as check
from modegpt.methods.fwsvd import fisher_weighted_factors


def labels(ids, mask):
    real = mask.bool()
    return ids.masked_fill(~(real & torch.nn.functional.pad(real, (1, 0))[:, :-1]), -100)


def _first_too(ids, mask):  # nothing looks at label 0
    found = labels(ids, mask)
    found[:, 0] = ids[:, 0].where(mask[:, 0].bool(), torch.tensor(-100))
    return found


def _ahead(ids, mask):
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)


def _ahead_and_masked(ids, mask):
    return torch.nn.functional.pad(labels(ids, mask)[:, 1:], (0, 1), value=-100)


def _in_place(ids, mask):
    return ids.masked_fill_(mask == 0, -100)


def _mask_in_place(ids, mask):
    mask[:, 1:] *= mask[:, :-1].clone()
    return ids.masked_fill(mask == 0, -100)


def fisher(X, D):
    return torch.einsum("sti,stj->sij", X.double(), D.double()).square().sum((0, 2))


def _one_by_one(X, D):
    return sum((x.double().mT @ d.double()).square().sum(1) for x, d in zip(X, D, strict=True))


def both(weight, outputs, inputs, k, *, a=None, b=None, undo=(True, True)):
    a, b = (outputs.sqrt() if a is None else a), (inputs.sqrt() if b is None else b)
    U, S, Vh = torch.linalg.svd(a[:, None] * weight * b, full_matrices=False)
    B, A = U[:, :k] * S[:k], Vh[:k]
    return (B / a[:, None] if undo[0] else B), (A / b if undo[1] else A)


def _by_the_package(weight, outputs, inputs, k):
    """The factors of the output-weighted matrix, by the package's row weights."""
    root = outputs.sqrt()[:, None]
    left, right = fisher_weighted_factors(root * weight, inputs)
    return left[:, :k] / root, right[:k]


def _weighted_svd(weight, outputs, inputs, k):
    U, S, Vh = torch.linalg.svd(outputs.sqrt()[:, None] * weight * inputs.sqrt(), full_matrices=False)
    return U[:, :k], S[:k], Vh[:k]


def _projected_from_the_left(weight, outputs, inputs, k):  # what is right with weights on the inputs alone
    U, _, _ = _weighted_svd(weight, outputs, inputs, k)
    return U, U.mT @ weight


def _projected_from_the_right(weight, outputs, inputs, k):
    _, _, Vh = _weighted_svd(weight, outputs, inputs, k)
    return weight @ Vh.mT, Vh


def _projected_and_undone(weight, outputs, inputs, k):
    U, _, _ = _weighted_svd(weight, outputs, inputs, k)
    return U / outputs.sqrt()[:, None], (U.mT * outputs.sqrt()) @ weight


def _no_singular_values(weight, outputs, inputs, k):
    U, _, Vh = _weighted_svd(weight, outputs, inputs, k)
    return U / outputs.sqrt()[:, None], Vh / inputs.sqrt()


def width_of(line, square):
    """The largest width of line w + square w^2 within the budget; both from (width, layers, channels, vocabulary)."""

    def function(budget, *sizes):
        one, two = line(*sizes), square(*sizes)
        return max((w for w in range(1, sizes[0] + 1) if one * w + two * w * w <= budget), default=0)

    return function


def _block(width, layers, channels, vocabulary):
    return layers * (4 * width + 2 * channels)


def _line(*sizes):
    return _block(*sizes) + 2 * sizes[-1]


def _square(*sizes):
    return 2 * sizes[1]


width = width_of(_line, _square)


def _by_the_root(budget, *sizes):
    line, square = _line(*sizes), _square(*sizes)
    return min(sizes[0], (math.isqrt(line**2 + 4 * square * budget) - line) // (2 * square))


def _strictly_less(budget, *sizes):
    return width(budget - 1, *sizes)


def _never_the_dense_width(budget, *sizes):
    return min(width(budget, *sizes), sizes[0] - 1)


def _wider_than_the_dense_model(budget, *sizes):
    line, square = _line(*sizes), _square(*sizes)
    return (math.isqrt(line**2 + 4 * square * budget) - line) // (2 * square)


RIGHT = [
    (check.labels_of, labels),
    (check.labels_of, _first_too),
    (check.fisher_from_samples, fisher),
    (check.fisher_from_samples, _one_by_one),
    (check.weighted_on_both_sides, both),
    (check.weighted_on_both_sides, _by_the_package),
    (check.weighted_on_both_sides, _projected_and_undone),
    (check.weighted_on_both_sides, lambda *given: [t.float() for t in both(*given)]),
    (check.slicegpt_width, width),
    (check.slicegpt_width, _by_the_root),
    (check.slicegpt_width, lambda *given: torch.tensor(width(*given))),
]
WRONG = [
    (check.labels_of, _ahead, "token after next"),
    (check.labels_of, _ahead_and_masked, "token after next"),
    (check.labels_of, lambda ids, mask: ids.clone(), "padding is a label: no loss"),
    (check.labels_of, lambda ids, mask: ids.masked_fill(mask == 0, -100), "behind padding"),
    (check.labels_of, lambda ids, mask: labels(ids, mask).clamp(min=0), "what does not count is -100"),
    (check.labels_of, lambda ids, mask: labels(ids, mask * (ids != 0)), "0 is a token|both real|before it are real"),
    (check.labels_of, lambda ids, mask: labels(ids, mask).masked_fill(ids == 0, -100), "go by the mask"),
    (check.labels_of, lambda ids, mask: ids.masked_fill(~mask.bool().roll(1, 1), -100), "behind a real token"),
    (check.labels_of, lambda ids, mask: labels(ids, mask * mask.roll(-1, 1)), "last real token"),
    (check.labels_of, lambda ids, mask: labels(ids, mask).flip(0), "before it are real"),
    (check.labels_of, _in_place, "its argument ids in place"),
    (check.labels_of, _mask_in_place, "its argument mask in place"),
    (check.labels_of, lambda ids, mask: labels(ids, mask).double(), "whole numbers"),
    (check.labels_of, lambda ids, mask: labels(ids, mask)[:, 1:], "shape"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).sum(0).square().sum(1), "of the whole batch"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).mean(0).square().sum(1), "the mean gradient"),
    (check.fisher_from_samples, lambda X, D: (X.square().mT @ D.square()).sum((0, 2)), "of every token alone"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).square().sum((0, 1)), "for every output"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).square().sum(0), "of every entry"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).sum(2).square().sum(0), "before it squares"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).abs().sum((0, 2)), "sizes, not squares"),
    (check.fisher_from_samples, lambda X, D: fisher(X, D).sqrt(), "the root"),
    (check.fisher_from_samples, lambda X, D: fisher(X, D) / len(X), "mean over the samples"),
    (check.fisher_from_samples, lambda X, D: fisher(X, D) / D.shape[2], "mean of every row"),
    (check.fisher_from_samples, lambda X, D: X.square().sum((0, 1)), "power of the inputs"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).square().sum((0, 2)), "vanish"),
    (check.fisher_from_samples, lambda X, D: (X.mT @ D).square().sum((0, 2)).double(), "vanish"),
    (check.fisher_from_samples, lambda X, D: 2 * fisher(X, D), "not the sums"),
    (check.fisher_from_samples, lambda X, D: fisher(X, D).clamp(min=1e-30), "small weights are off"),
    (check.fisher_from_samples, lambda X, D: fisher(X, D) + 1e-12, "small weights are off"),
    (check.weighted_on_both_sides, lambda w, a, b, k: both(w, a, b, k, a=a**0, b=b**0), "plain SVD"),
    (check.weighted_on_both_sides, lambda w, a, b, k: both(w, a, b, k, a=a**0), "outputs are not used"),
    (check.weighted_on_both_sides, lambda w, a, b, k: both(w, a, b, k, b=b**0), "inputs are not used"),
    (check.weighted_on_both_sides, lambda w, a, b, k: both(w, a, b, k, a=a, b=b), "roots of the weights"),
    (check.weighted_on_both_sides, lambda w, a, b, k: both(w, a, b, k, a=a**-0.5, b=b**-0.5), "turned round"),
    (check.weighted_on_both_sides, lambda *given: both(*given, undo=(False, False)), "still in the product"),
    (check.weighted_on_both_sides, lambda *given: both(*given, undo=(False, True)), "still in B"),
    (check.weighted_on_both_sides, lambda *given: both(*given, undo=(True, False)), "still in A"),
    (
        check.weighted_on_both_sides,
        lambda w, a, b, k: both(w, *((b, a) if len(a) == len(b) else (a, b)), k),
        "changed places",
    ),
    (check.weighted_on_both_sides, _projected_from_the_left, "D_1 does not cancel"),
    (check.weighted_on_both_sides, _projected_from_the_right, "D_2 does not cancel"),
    (check.weighted_on_both_sides, _no_singular_values, "singular values are missing"),
    (check.weighted_on_both_sides, lambda *given: [2 * t for t in both(*given)], "the least is"),
    (check.weighted_on_both_sides, lambda *given: both(*given)[0] @ both(*given)[1], "two matrices"),
    (check.weighted_on_both_sides, lambda *given: both(*given)[::-1], "shape"),
    (check.slicegpt_width, width_of(_line, lambda *_: 0), "shortcuts are not counted"),
    (check.slicegpt_width, width_of(_line, lambda w, n, c, v: n), "two shortcuts"),
    (check.slicegpt_width, width_of(lambda *s: _block(*s) + s[-1], _square), "table of its own"),
    (check.slicegpt_width, width_of(lambda *s: _block(*s) + s[-1], lambda *_: 0), "neither"),
    (check.slicegpt_width, width_of(_block, _square), "whole model's"),
    (
        check.slicegpt_width,
        width_of(lambda w, n, c, v: 2 * v, lambda w, n, c, v: n * (4 * w + 2 * c) / w + 2 * n),
        "one side",
    ),
    (check.slicegpt_width, width_of(lambda w, n, c, v: _line(w, n, c, v) + n * c, _square), "no gate"),
    (check.slicegpt_width, width_of(lambda w, n, c, v: 2 * n * c + 2 * v, lambda w, n, c, v: 6 * n), "one side"),
    (
        check.slicegpt_width,
        width_of(lambda w, n, c, v: _line(w, n, c, v) + 2 * n * w, lambda *_: 0),
        "both of its sides",
    ),
    (check.slicegpt_width, width_of(lambda w, n, c, v: 6 * n * w + 2 * v, _square), "on their other side"),
    (check.slicegpt_width, width_of(lambda w, n, c, v: 12 * n * w + 2 * v, _square), "need not be four times"),
    (check.slicegpt_width, _strictly_less, "one more would still fit"),
    (check.slicegpt_width, _never_the_dense_width, "one more would still fit"),
    (check.slicegpt_width, _wider_than_the_dense_model, "no model wider"),
    (check.slicegpt_width, lambda *given: width(*given) + 1, "one too wide"),
    (check.slicegpt_width, lambda *given: width(*given) - 1, "still fit"),
    (check.slicegpt_width, lambda *given: width(*given) // 2, "the largest width is"),
    (check.slicegpt_width, lambda *given: width(*given) + 0.5, "whole number"),
    (check.slicegpt_width, lambda *given: str(width(*given)), "one number"),
]


class TestAnswers(Answers):
    right, wrong = RIGHT, WRONG
