from itertools import product

import torch
from answers import Answers
from torch.nn.functional import kl_div

from modegpt.allocate import knapsack
from modegpt.correct import refit
from modegpt.course.check import better as check
from modegpt.measure import _interpolate


def kl(dense, small, axis=-1):
    p, q = dense.log_softmax(axis), small.log_softmax(axis)
    return (p.exp() * (p - q)).sum(axis).mean()


def _by_torch(dense, small):
    return kl_div(small.log_softmax(-1), dense.softmax(-1), reduction="batchmean")


def _overflows(dense, small):
    p, q = dense.softmax(-1), small.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def _averaged_first(dense, small):
    return kl(dense.softmax(-1).mean(0).log()[None], small.softmax(-1).mean(0).log()[None])


def _cross_entropy(dense, small):
    return -(dense.softmax(-1) * small.log_softmax(-1)).sum(-1).mean()


def by_the_package(E, measured, size):
    return _interpolate(E, measured, torch.tensor([size])).item()


def interpolated(scale=torch.log, measure=torch.log, undo=torch.exp, outside="nearest", sizes=False):
    def function(E, measured, size):
        small, large = sorted(measured)
        D = torch.tensor([measured[large], measured[small]], dtype=torch.float64)
        if not small <= size <= large and outside != "line":
            anchor = small if (size < small) == (outside == "nearest") else large
            return (measured[anchor] * E[size] / E[anchor]).item()
        x = torch.arange(len(E)).double() if sizes else scale(E)
        t = (x[size] - x[large]) / (x[small] - x[large])
        return undo(measure(D)[0] + t * (measure(D)[1] - measure(D)[0])).item()

    return function


def same(x):
    return x


def _one_measurement(E, measured, size):
    return (
        by_the_package(E, measured, size)
        if size in measured
        else (measured[min(measured)] * E[size] / E[min(measured)])
    )


def all_tried(costs, losses, budget):
    def total(table, at):
        return sum(row[i] for row, i in zip(table, at, strict=True))

    fits = [at for at in product(*(range(len(cost)) for cost in costs)) if total(costs, at) <= budget]
    return min(fits, key=lambda at: total(losses, at))


def _by_tables(costs, losses, budget):
    """Dynamic programming over the parameters spent."""
    best = {0: (0.0, [])}
    for cost, loss in zip(costs, losses, strict=True):
        tried = {}
        for spent, (lost, at) in best.items():
            for i, (c, v) in enumerate(zip(cost, loss, strict=True)):
                if spent + c <= budget and (spent + c not in tried or lost + v < tried[spent + c][0]):
                    tried[spent + c] = lost + v, [*at, i]
        best = tried
    return torch.tensor(min(best.values())[1])


def _one_after_the_other(costs, losses, budget):
    left, chosen = budget - sum(cost[0] for cost in costs), []
    for cost in costs:
        chosen.append(max(i for i, c in enumerate(cost) if c - cost[0] <= left))
        left -= cost[chosen[-1]] - cost[0]
    return chosen


def corrected(W, Z, own, wanted, share, ridge):
    return W + refit(Z.mT @ Z, Z.mT @ ((1 - share) * own + share * wanted - Z @ W), ridge)


def _stacked(W, Z, own, wanted, share, ridge):
    """The same as one least-squares problem: the ridge is a row more for every input."""
    n, root = len(W), (ridge * (Z.mT @ Z).diagonal().mean()).sqrt()
    inputs = torch.cat([Z, root * torch.eye(n, dtype=Z.dtype)])
    outputs = torch.cat([(1 - share) * own + share * wanted, root * W])
    return torch.linalg.lstsq(inputs, outputs, driver="gelsd").solution


def ridged(scale):
    def function(W, Z, own, wanted, share, ridge):
        gram, error = Z.mT @ Z, (1 - share) * own + share * wanted - Z @ W
        return W + torch.linalg.solve(gram + ridge * scale(gram.diagonal()) * torch.eye(len(W)).double(), Z.mT @ error)

    return function


def _from_nothing(W, Z, own, wanted, share, ridge):
    return corrected(0 * W, Z, own, wanted, share, ridge)


def _counted_twice(W, Z, own, wanted, share, ridge):
    return W + corrected(0 * W, Z, own, wanted, share, ridge)


def _both_in_full(W, Z, own, wanted, share, ridge):
    return corrected(W, Z, own / (1 - share) if share < 1 else own, wanted, share, ridge)


def _in_place(W, Z, own, wanted, share, ridge):
    return W.add_(1)


RIGHT = [
    (check.divergence, kl),
    (check.divergence, _by_torch),
    (check.divergence, lambda dense, small: kl(dense, small).item()),
    (check.between, interpolated()),
    (check.between, by_the_package),
    (check.cheapest, all_tried),
    (check.cheapest, _by_tables),
    (check.half_corrected, corrected),
    (check.half_corrected, _stacked),
    (check.half_corrected, ridged(torch.mean)),
]
WRONG = [
    (check.divergence, lambda dense, small: kl(small, dense), "weigh with the dense"),
    (check.divergence, lambda dense, small: -kl(dense, small), "wrong sign"),
    (check.divergence, lambda dense, small: kl(dense, small) * len(dense), "sum over the tokens"),
    (check.divergence, lambda dense, small: kl(dense, small) / dense.shape[1], "divided by the vocabulary"),
    (check.divergence, lambda dense, small: kl(dense, small) / torch.tensor(2).log(), "in bits"),
    (check.divergence, lambda dense, small: kl(dense, small, 0), "the last axis"),
    (check.divergence, lambda dense, small: (dense.softmax(-1) * (dense - small)).sum(-1).mean(), "not normalised"),
    (check.divergence, _cross_entropy, "cross-entropy"),
    (check.divergence, _averaged_first, "averaged first"),
    (check.divergence, _overflows, "log_softmax"),
    (check.divergence, lambda dense, small: kl(dense, small) + 1e-2, "the mean divergence is"),
    (check.divergence, lambda dense, small: (dense - small)[0], "one number"),
    (check.between, interpolated(same, same, same), "in E and D themselves"),
    (check.between, interpolated(sizes=True), "goes by the size: the residual"),
    (check.between, interpolated(measure=same, undo=same, sizes=True), "not by logarithms"),
    (check.between, interpolated(scale=same), "E has to be taken as a logarithm"),
    (check.between, interpolated(outside="line"), "no line goes on"),
    (check.between, interpolated(outside="other"), "nearer"),
    (check.between, _one_measurement, "both measurements count"),
    (check.between, lambda *given: 2 * by_the_package(*given), "the measured value stands"),
    (check.between, lambda E, m, k: m.get(k) or by_the_package(E, m, k) * 1.01, "between the two it should be"),
    (check.between, lambda E, m, k: m.get(k) or -by_the_package(E, m, k), "at least 0"),
    (check.between, lambda E, m, k: by_the_package(E, m, k) + 1e-3 * (k == len(E) - 1), "full size loses nothing"),
    (check.cheapest, knapsack, "best price first"),
    (check.cheapest, _one_after_the_other, "that loses"),
    (check.cheapest, lambda costs, losses, budget: [0] * len(costs), "that loses"),
    (check.cheapest, lambda costs, losses, budget: [len(cost) - 1 for cost in costs], "of a budget of"),
    (check.cheapest, lambda c, v, b: [cost[i] for cost, i in zip(c, all_tried(c, v, b), strict=True)], "indices into"),
    (check.cheapest, lambda c, v, b: all_tried(c, v, b - 1), "that loses|stops with"),
    (check.cheapest, lambda *given: all_tried(*given)[:-1], "you chose"),
    (check.cheapest, lambda *given: 3, "return a list"),
    (check.half_corrected, lambda W, Z, o, w, s, r: corrected(W, Z, o, w, 1 - s, r), "turned round|own error only"),
    (check.half_corrected, lambda W, Z, o, w, s, r: corrected(W, Z, o, w, 1, r), "all of the error"),
    (check.half_corrected, lambda W, Z, o, w, s, r: corrected(W, Z, o, w, 0, r), "own error only"),
    (check.half_corrected, lambda W, *given: corrected(W, *given) - W, "only what to add"),
    (check.half_corrected, lambda W, *given: 2 * W - corrected(W, *given), "wrong sign"),
    (check.half_corrected, lambda W, *given: W.clone(), "nothing was corrected"),
    (check.half_corrected, _from_nothing, "pulls towards 0"),
    (check.half_corrected, _counted_twice, "W is counted twice"),
    (check.half_corrected, _both_in_full, "both targets in full"),
    (check.half_corrected, ridged(lambda diagonal: 0 * diagonal.sum()), "without the ridge"),
    (check.half_corrected, ridged(lambda diagonal: 1), "the ridge is relative"),
    (check.half_corrected, ridged(torch.sum), "not of its sum"),
    (check.half_corrected, lambda *given: 1.1 * corrected(*given), "ridge regression of the error"),
    (check.half_corrected, lambda *given: corrected(*given).mT, "shape"),
    (check.half_corrected, _in_place, "its argument W in place"),
]


class TestAnswers(Answers):
    right, wrong = RIGHT, WRONG
