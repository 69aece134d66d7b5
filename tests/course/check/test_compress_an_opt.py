import torch
from answers import Answers

from modegpt import load_model
from modegpt.course.check import compress_an_opt as check
from modegpt.families import family_of


def count(q, v, m, width, heads, vocabulary, positions):
    matrices = 2 * width * (heads * (sum(q) + sum(v)) + sum(m))
    biases = 2 * heads * sum(q) + sum(m) + 2 * len(m) * width
    return matrices + biases + (2 * len(m) + 1) * 2 * width + (vocabulary + positions + 2) * width


def _changed(part):
    """The right count plus a mistaken part of the same arguments."""
    return lambda *given: count(*given) + part(*given)


def highest(weight, bias, gain, shift):
    rows = weight * gain
    return weight.shape[1] ** 0.5 * (rows - rows.mean(1, keepdim=True)).norm(dim=1) + weight @ shift + bias


def _reach(part, *, constant=lambda weight, bias, gain, shift: weight @ shift + bias):
    """A mistaken reach of the norm, or a mistaken constant."""
    return lambda weight, bias, gain, shift: part(weight, gain) + constant(weight, bias, gain, shift)


def right_reach(weight, gain):
    return highest(weight, 0, gain, 0 * gain)


def mean_off(rows):
    return rows - rows.mean(1, keepdim=True)


def by_steps(weight, bias, gain, shift):
    """The best token itself, put through the linear map."""
    z = mean_off(weight * gain)
    z = weight.shape[1] ** 0.5 * z / z.norm(dim=1, keepdim=True)
    return (weight * (z * gain + shift)).sum(1) + bias


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


def _attention(logits):
    return logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf).softmax(-1)


def head(x, query, key, biases, kept, pair, output, *, b_q=None, b_k=None, scale=None, attention=_attention, times=1):
    b_q = biases[0][kept] if b_q is None else b_q
    b_k = biases[1][kept] if b_k is None else b_k
    scale = query.shape[1] ** -0.5 if scale is None else scale
    logits = (x @ query[:, kept] + b_q) @ (x @ key[:, kept] + b_k).mT * scale
    return attention(logits) @ x @ pair[0] @ pair[1] + times * biases[2] @ output


def _through_q(*given):
    pair, constant = given[5], given[3][2] @ given[6]
    return head(*given, times=0) + constant @ torch.linalg.pinv(pair[1]) @ pair[1]


RIGHT = [
    (check.parameter_count, count),
    (check.parameter_count, lambda *given: torch.tensor(count(*given))),
    (check.highest, highest),
    (check.highest, by_steps),
    (check.highest, lambda *given: highest(*given).float()),
    (check.in_stock_heads, stock),
    (check.compressed_head, head),
    (check.compressed_head, lambda *given: head(*given, b_k=torch.zeros(len(given[4])).double())),  # softmax: no matter
]
WRONG = [
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -2 * w), "final norm, or the two more rows"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: n * w), "twice"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -(2 * len(m) + 1) * w), "a weight and a bias"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -4 * len(m) * w), "norms of the layers"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -(2 * len(m) + 1) * 2 * w), "leaves out the norms$"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -w), "width too few"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: h * sum(v)), "folded away: v_proj"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: len(m) * w), "the whole of it"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -len(m) * w), "which both stay"),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -h * sum(q)), "both have a bias"),
    (check.parameter_count, lambda q, v, *rest: count(v, q, *rest), "change places"),
    (check.parameter_count, lambda q, v, m, w, h, *rest: count(q, v, m, w, 1, *rest), "several heads"),
    (
        check.parameter_count,
        lambda q, v, m, *rest: count(*([sizes[0]] * len(m) for sizes in (q, v, m)), *rest),
        "the layers differ",
    ),
    (check.parameter_count, _changed(lambda q, v, m, w, h, n, p: -2 * len(m) * w), "a norm, or the biases"),
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
    (check.highest, _reach(lambda w, g: right_reach(w, g) / w.shape[1] ** 0.5), "not 1$"),
    (check.highest, _reach(lambda w, g: right_reach(w, g) * w.shape[1] ** 0.5), "not width$"),
    (check.highest, _reach(lambda w, g: w.shape[1] ** 0.5 * (w * g).norm(dim=1)), "takes the mean off"),
    (check.highest, _reach(lambda w, g: w.shape[1] ** 0.5 * (mean_off(w) * g).norm(dim=1)), "gain first"),
    (check.highest, _reach(lambda w, g: right_reach(w, 0 * g + 1)), "gain is missing"),
    (check.highest, _reach(right_reach, constant=lambda w, b, g, s: b), "shift of the norm is missing"),
    (check.highest, _reach(right_reach, constant=lambda w, b, g, s: w @ s), "bias of fc1 is missing"),
    (check.highest, _reach(right_reach, constant=lambda w, b, g, s: 0), "constant is missing"),
    (check.highest, _reach(right_reach, constant=lambda w, b, g, s: (w * g) @ s + b), "after the gain"),
    (check.highest, _reach(lambda w, g: -right_reach(w, g)), "smallest"),
    (check.highest, _reach(lambda w, g: w.shape[1] ** 0.5 * mean_off(w * g).abs().amax(1)), "more than one entry"),
    (check.highest, _reach(lambda w, g: w.shape[1] ** 0.5 * mean_off(w * g).abs().sum(1)), "not in a box"),
    (check.highest, lambda *given: highest(*given).relu(), "before the ReLU"),
    (check.highest, _reach(lambda w, g: 0.1 * right_reach(w, g)), "reach higher"),
    (check.highest, _reach(lambda w, g: 1.1 * right_reach(w, g)), "reaches as high"),
    (check.highest, lambda *given: highest(*given) > 0, "themselves"),
    (check.highest, lambda w, b, g, s: highest(w, b, g, s)[:, None], "shape"),
    (check.in_stock_heads, _behind, "behind all heads, so"),
    (check.in_stock_heads, lambda w, *rest: stock(w * (rest[2] * rest[1] / len(w)) ** 0.5, *rest), "no scale"),
    (check.in_stock_heads, lambda w, *rest: stock(w / (rest[2] * rest[1] / len(w)) ** 0.5, *rest), "no scale"),
    (check.in_stock_heads, lambda w, b, h, d: (stock(w, b, h, d)[0] + 1, stock(w, b, h, d)[1]), "should be zero"),
    (check.in_stock_heads, _shuffled, "of another one"),
    (check.in_stock_heads, _before, "in their order"),
    (check.in_stock_heads, lambda *given: (stock(*given)[0], _behind(*given)[1]), "of the bias stand behind"),
    (check.in_stock_heads, lambda *given: (stock(*given)[0], stock(*given)[1] + 1), "zero for every token"),
    (check.in_stock_heads, lambda *given: (stock(*given)[0], 2 * stock(*given)[1]), "be spread"),
    (check.in_stock_heads, lambda *given: stock(*given)[0], "two tensors"),
    (check.compressed_head, lambda *given: head(*given, scale=len(given[4]) ** -0.5), "original d"),
    (check.compressed_head, lambda *given: head(*given, scale=1), "scale is missing"),
    (check.compressed_head, lambda *given: head(*given, scale=len(given[1]) ** -0.5), "model's width"),
    (check.compressed_head, lambda *given: head(*given, b_q=0), "query bias is missing"),
    (check.compressed_head, lambda *given: head(*given, b_q=given[3][0][: len(given[4])]), "cut, not selected"),
    (check.compressed_head, lambda *given: head(*given, attention=lambda logits: logits.softmax(-1)), "look ahead"),
    (check.compressed_head, lambda *given: head(*given, attention=lambda x: x.tril().softmax(-1)), "not hidden"),
    (
        check.compressed_head,
        lambda *given: head(*given, attention=lambda x: x.softmax(-1).tril()),
        "before the softmax",
    ),
    (
        check.compressed_head,
        lambda *given: head(*given, attention=lambda x: _attention(x.flip(0, 1)).flip(0, 1)),
        "over",
    ),
    (
        check.compressed_head,
        lambda *given: head(
            *given, attention=lambda x: x.masked_fill(torch.ones_like(x).triu(1).bool(), -torch.inf).softmax(0)
        ),
        "last axis",
    ),
    (
        check.compressed_head,
        lambda *given: head(*given, b_q=given[3][1][given[4]], b_k=given[3][0][given[4]]),
        "changed places",
    ),
    (check.compressed_head, _through_q, "went through Q"),
    (check.compressed_head, lambda *given: head(*given, times=0), "is dropped"),
    (check.compressed_head, lambda *given: head(*given, times=len(given[0])), "sum to one"),
    (check.compressed_head, lambda *given: 2 * head(*given), "the output differs"),
    (check.compressed_head, lambda *given: given[1], "shape"),
]


class TestAnswers(Answers):
    right, wrong = RIGHT, WRONG


def test_no_channel_of_opt_mini_is_silent_by_its_weights():
    model, _ = load_model("opt-mini", dtype="float32", device="cpu")
    for layer in family_of(model).layers(model):
        norm = layer.final_layer_norm
        assert (highest(layer.fc1.weight, layer.fc1.bias, norm.weight, norm.bias) > 1).all()
