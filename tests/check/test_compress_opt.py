import pytest
import torch

from modegpt.check import NotYet
from modegpt.check import compress_opt as check


def count(q, v, m, width, heads, vocabulary, positions):
    matrices = 2 * width * (heads * (sum(q) + sum(v)) + sum(m))
    biases = 2 * heads * sum(q) + sum(m) + 2 * len(m) * width
    return matrices + biases + (2 * len(m) + 1) * 2 * width + (vocabulary + positions + 2) * width


def _changed(part):
    """The right count plus a mistaken part of the same arguments."""
    return lambda *given: count(*given) + part(*given)


def intercept(gram, mean, down, bias, kept):
    centred = gram - mean.outer(mean)
    new = torch.linalg.solve(centred[kept][:, kept], centred[kept] @ down)
    return new, bias + mean @ down - mean[kept] @ new


def _bias(part):
    """The right matrix with a mistaken bias."""

    def function(gram, mean, down, bias, kept):
        new, _ = intercept(gram, mean, down, bias, kept)
        return new, part(mean, down, bias, kept, new)

    return function


def _origin(gram, mean, down, bias, kept):
    new = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ down)
    return new, bias + mean @ down - mean[kept] @ new


def stock(weight, bias, heads, d):
    k = len(weight) // heads
    rows = torch.nn.functional.pad(weight.unflatten(0, (heads, k)), (0, 0, 0, d - k))
    return rows.flatten(0, 1), torch.nn.functional.pad(bias.unflatten(0, (heads, k)), (0, d - k)).flatten()


def _behind(weight, bias, heads, d):
    gap = heads * d - len(weight)
    return torch.nn.functional.pad(weight, (0, 0, 0, gap)), torch.nn.functional.pad(bias, (0, gap))


def _before(weight, bias, heads, d):
    rows, entries = stock(weight, bias, heads, d)
    return rows.unflatten(0, (heads, d)).flip(1).flatten(0, 1), entries.unflatten(0, (heads, d)).flip(1).flatten()


def _shuffled(weight, bias, heads, d):
    rows, entries = stock(weight, bias, heads, d)
    return rows.unflatten(0, (heads, d)).roll(1, 0).flatten(0, 1), entries


def head(x, query, key, biases, kept, pair, output, *, b_q=None, b_k=None, scale=None, ahead=False, times=1):
    b_q = biases[0][kept] if b_q is None else b_q
    b_k = biases[1][kept] if b_k is None else b_k
    scale = query.shape[1] ** -0.5 if scale is None else scale
    logits = (x @ query[:, kept] + b_q) @ (x @ key[:, kept] + b_k).mT * scale
    if not ahead:
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
    return logits.softmax(-1) @ x @ pair[0] @ pair[1] + times * biases[2] @ output


def _unfinished(*_):
    raise NotImplementedError


RIGHT = [
    (check.parameter_count, count),
    (check.parameter_count, lambda *given: torch.tensor(count(*given))),
    (check.with_intercept, intercept),
    (check.with_intercept, lambda *given: [t.float() for t in intercept(*given)]),
    (check.in_stock_heads, stock),
    (check.compressed_head, head),
    (check.compressed_head, lambda *given: head(*given, b_k=torch.zeros(len(given[4])).double())),  # softmax: no matter
]
WRONG = [
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -2 * w), "two rows more"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: n * w), "twice"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -(2 * len(m) + 1) * w), "a weight and a bias"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -4 * len(m) * w), "norms of the layers"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -(2 * len(m) + 1) * 2 * w), "leaves out the norms$"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: h * sum(v)), "folded away"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -2 * len(m) * w), "which stay"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -2 * h * sum(q)), "of queries and keys: one"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -sum(m)), "bias of fc1: one"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -sum(m) - 2 * h * sum(q)), "that were selected"),
    (
        check.parameter_count,
        _changed(lambda q, v, m, w, h, n, p: -sum(m) - 2 * h * sum(q) - 2 * len(m) * w),
        "all biases",
    ),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: sum(m) * w), "no gate"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -(p + 2) * w), "learned"),
    (check.parameter_count, lambda *given: str(count(*given)), "number"),
    (check.parameter_count, lambda *given: 2 * count(*given), "the count is"),
    (check.with_intercept, _origin, "through the origin"),
    (check.with_intercept, lambda g, m, d, b, J: (d[J], b), "only selects"),
    (check.with_intercept, lambda g, m, d, b, J: (2 * d[J], b), "least-squares"),
    (check.with_intercept, _bias(lambda mean, down, bias, kept, new: bias), "stays as it was"),
    (check.with_intercept, _bias(lambda mean, down, bias, kept, new: mean @ down - mean[kept] @ new), "old bias"),
    (
        check.with_intercept,
        _bias(lambda mean, down, bias, kept, new: bias - mean @ down + mean[kept] @ new),
        "wrong sign",
    ),
    (check.with_intercept, _bias(lambda mean, down, bias, kept, new: bias + mean @ down), "still give"),
    (
        check.with_intercept,
        _bias(lambda mean, down, bias, kept, new: bias + mean @ down - mean[kept] @ down[kept]),
        "the new matrix",
    ),
    (check.with_intercept, _bias(lambda mean, down, bias, kept, new: 2 * bias), "mean token should receive"),
    (check.with_intercept, lambda *given: intercept(*given)[0], "two tensors"),
    (check.in_stock_heads, _behind, "behind all heads, so"),
    (check.in_stock_heads, lambda w, *rest: stock(w * (rest[2] * rest[1] / len(w)) ** 0.5, *rest), "no scale"),
    (check.in_stock_heads, lambda w, b, h, d: (stock(w, b, h, d)[0] + 1, stock(w, b, h, d)[1]), "should be zero"),
    (check.in_stock_heads, _shuffled, "of another one"),
    (check.in_stock_heads, _before, "in their order"),
    (check.in_stock_heads, lambda *given: (stock(*given)[0], _behind(*given)[1]), "of the bias stand behind"),
    (check.in_stock_heads, lambda *given: (stock(*given)[0], stock(*given)[1] + 1), "zero for every token"),
    (check.in_stock_heads, lambda *given: (stock(*given)[0], 2 * stock(*given)[1]), "be spread"),
    (check.in_stock_heads, lambda *given: stock(*given)[0], "two tensors"),
    (check.compressed_head, lambda *given: head(*given, scale=len(given[4]) ** -0.5), "original d"),
    (check.compressed_head, lambda *given: head(*given, scale=1), "scale is missing"),
    (check.compressed_head, lambda *given: head(*given, b_q=0), "query bias is missing"),
    (check.compressed_head, lambda *given: head(*given, b_q=given[3][0][: len(given[4])]), "cut, not selected"),
    (check.compressed_head, lambda *given: head(*given, ahead=True), "look ahead"),
    (check.compressed_head, lambda *given: head(*given, times=0), "is dropped"),
    (check.compressed_head, lambda *given: head(*given, times=len(given[0])), "sum to one"),
    (check.compressed_head, lambda *given: 2 * head(*given), "the output differs"),
    (check.compressed_head, lambda *given: given[1], "shape"),
]


@pytest.mark.parametrize(("verify", "solution"), RIGHT)
def test_right_answers_pass(verify, solution, capsys):
    verify(solution)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(("verify", "solution", "message"), WRONG)
def test_wrong_answers_are_rejected_with_the_likely_mistake(verify, solution, message):
    with pytest.raises(NotYet, match=message):
        verify(solution)


@pytest.mark.parametrize(
    "verify", [check.parameter_count, check.with_intercept, check.in_stock_heads, check.compressed_head]
)
def test_an_unfinished_function_is_named(verify):
    with pytest.raises(NotYet, match="_unfinished has no solution yet"):
        verify(_unfinished)
