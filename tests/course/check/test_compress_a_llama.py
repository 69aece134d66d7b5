import numpy as np
import torch
from answers import Answers

from modegpt.course.check import compress_a_llama as check


def count(query_key, value, mlp, width, heads, kv_heads, vocabulary, tied):
    dims = sum(query_key) + sum(value)
    table = vocabulary * width
    norms = (2 * len(mlp) + 1) * width
    return dims * width * (heads + kv_heads) + 3 * sum(mlp) * width + norms + (1 if tied else 2) * table


def _changed(part):
    """The right count plus a mistaken part of the same arguments."""
    return lambda q, v, m, w, h, k, n, t: count(q, v, m, w, h, k, n, t) + part(sum(q) + sum(v), m, w, h, k, n, t)


def _value_heads(heads_of):
    """The right count, but a value dim is paid for `heads_of` the query and the key/value heads times."""
    return lambda q, v, m, w, h, k, n, t: count(q, v, m, w, h, k, n, t) + sum(v) * w * (heads_of(h, k) - h - k)


def perplexity(losses):
    return torch.cat(losses).double().mean().exp().item()


def ratio(first, second):
    change = second - first
    return change.mean().exp().item(), (change.mean().exp() * change.std() / len(change) ** 0.5).item()


def _error(part):
    """The right ratio with a mistaken error, `part` of the differences and the two losses."""
    return lambda a, b: (ratio(a, b)[0], part(b - a, a, b))


def _turn(states, cos, sin):
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin


def logits(x, query, key, kept, cos, sin, scale=None, turn=_turn):
    q, k = (turn(x @ w, cos[:, kept], sin[:, kept]) for w in (query, key))
    return q @ k.mT * (cos.shape[1] ** -0.5 if scale is None else scale)


def logits_padded(x, query, key, kept, cos, sin, at=None):
    full = torch.zeros(2, x.shape[1], cos.shape[1], dtype=x.dtype)
    full[:, :, kept if at is None else at] = torch.stack([query, key])
    q, k = (_turn(x @ w, cos, sin) for w in full)
    return q @ k.T / cos.shape[1] ** 0.5


def _interleaved(states, cos, sin):
    turned = torch.stack([-states[:, 1::2], states[:, ::2]], -1).flatten(-2)
    return states * cos + turned * sin


def _first_dims(x, query, key, kept, cos, sin):
    return logits(x, query, key, torch.arange(len(kept)), cos, sin)


def _first_pairs(x, query, key, kept, cos, sin):
    lower = torch.arange(len(kept) // 2)
    return logits(x, query, key, torch.cat([lower, lower + cos.shape[1] // 2]), cos, sin)


def _keys_as_they_are(x, query, key, kept, cos, sin):
    return _turn(x @ query, cos[:, kept], sin[:, kept]) @ (x @ key).T / cos.shape[1] ** 0.5


RIGHT = [
    (check.parameter_count, count),
    (check.parameter_count, lambda *given: torch.tensor(count(*given))),
    (check.perplexity_of, perplexity),
    (check.perplexity_of, lambda losses: torch.cat(losses).float().mean().exp()),
    (check.perplexity_of, lambda losses: torch.exp(sum(x.double().sum() for x in losses) / sum(map(len, losses)))),
    (check.perplexity_ratio, ratio),
    (check.perplexity_ratio, lambda a, b: [b.mean().exp() / a.mean().exp(), ratio(a, b)[1]]),
    (check.perplexity_ratio, lambda a, b: tuple(np.float64(x) for x in ratio(a, b))),
    (check.head_logits, logits),
    (check.head_logits, logits_padded),
]
WRONG = [
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: n * w if t else 0), "twice"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: 0 if t else -n * w), "untied"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -(2 * len(m) + 1) * w), "leaves out the norms"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -w), "last norm"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: d * w * (h - k)), "takes `heads` for both"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -d * w * (h - k)), "takes `kv_heads` for both"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -d * w * h), "leaves out queries"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -sum(m) * w), "three vectors"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -d * w * k), "leaves out keys"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -d * w * (h + k - 2)), "one head of each"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -len(m) * w), "that counts one"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -(len(m) - 1) * 2 * w), "norms of its own"),
    (check.parameter_count, _changed(lambda d, m, w, h, k, n, t: -n * w if t else -2 * n * w), "the embeddings"),
    (check.parameter_count, lambda q, v, *rest: count(q, [0 for _ in v], *rest), "leaves out value-output"),
    (check.parameter_count, lambda q, v, *rest: count([0 for _ in q], v, *rest), "leaves out query-key"),
    (check.parameter_count, _value_heads(lambda h, k: 2 * h), "column of each value head"),
    (check.parameter_count, _value_heads(lambda h, k: 2 * k), "column of each value head"),
    (check.parameter_count, lambda *given: count(*(x[:1] * len(x) for x in given[:3]), *given[3:]), "first layer"),
    (check.parameter_count, lambda *given: str(count(*given)), "number"),
    (check.parameter_count, lambda *given: 2 * count(*given), "the count is"),
    (check.perplexity_of, lambda x: torch.stack([w.mean() for w in x]).mean().exp(), "different numbers"),
    (check.perplexity_of, lambda x: torch.cat(x).exp().mean(), "mean of exps"),
    (check.perplexity_of, lambda x: torch.stack([w.mean().exp() for w in x]).mean(), "windows' perplexities"),
    (check.perplexity_of, lambda x: torch.cat(x).mean(), "exponential"),
    (check.perplexity_of, lambda x: 2 ** torch.cat(x).mean(), "base is e"),
    (check.perplexity_of, lambda x: torch.cat(x).mean().exp(), "upcast"),
    (check.perplexity_of, lambda x: torch.cat(x).cumsum(0)[-1].div(len(torch.cat(x))).exp(), "upcast"),
    (check.perplexity_of, lambda x: torch.cat(x).double().mean().exp().to(x[0].dtype), "stay there"),
    (check.perplexity_of, lambda x: torch.cat(x).sum().div(len(x)).exp(), "number of documents"),
    (check.perplexity_of, lambda x: torch.cat(x).sum().exp(), "exp of a sum"),
    (check.perplexity_of, lambda x: perplexity([w[1:] for w in x]), "perplexity of this case"),
    (check.perplexity_of, lambda x: None if x[0].dtype == torch.bfloat16 else perplexity(x), "returns nothing"),
    (check.perplexity_of, lambda x: torch.cat(x).exp(), "number"),
    (check.perplexity_ratio, lambda a, b: ratio(b, a), "turned around"),
    (check.perplexity_ratio, lambda a, b: ((b - a).mean(), ratio(a, b)[1]), "its exponential"),
    (check.perplexity_ratio, lambda a, b: ((b - a).exp().mean(), ratio(a, b)[1]), "windows' ratios"),
    (check.perplexity_ratio, lambda a, b: (b.exp().mean() / a.exp().mean(), 0.1), "windows' perplexities"),
    (check.perplexity_ratio, lambda a, b: (b.mean() / a.mean(), 0.1), "of the losses"),
    (check.perplexity_ratio, lambda a, b: (2.0, 0.1), "the ratio of this case"),
    (check.perplexity_ratio, _error(lambda d, a, b: d.std() / len(d) ** 0.5), "exp"),
    (
        check.perplexity_ratio,
        _error(lambda d, a, b: d.mean().exp() * ((a.var() + b.var()) / len(a)).sqrt()),
        "independent",
    ),
    (check.perplexity_ratio, _error(lambda d, a, b: d.mean().exp() * d.std()), "single windows"),
    (
        check.perplexity_ratio,
        _error(lambda d, a, b: d.mean().exp() * d.std(correction=0) / len(d) ** 0.5),
        "windows - 1",
    ),
    (check.perplexity_ratio, _error(lambda d, a, b: d.mean().exp() * d.var() / len(d)), "root is missing"),
    (check.perplexity_ratio, _error(lambda d, a, b: d.mean().exp() * d.std() / len(d)), "not by windows"),
    (check.perplexity_ratio, _error(lambda d, a, b: ((a.var() + b.var()) / len(a)).sqrt()), "independent"),
    (check.perplexity_ratio, _error(lambda d, a, b: d.exp().std() / len(d) ** 0.5), "mean of the windows' ratios"),
    (
        check.perplexity_ratio,
        _error(lambda d, a, b: d.mean().exp() * (d.std() / len(d) ** 0.5).expm1()),
        "whole standard error",
    ),
    (check.perplexity_ratio, _error(lambda d, a, b: d.std() / len(d) ** 0.5 / d.mean().exp()), "divided by the ratio"),
    (check.perplexity_ratio, _error(lambda d, a, b: d.mean().exp() * d.std() / (len(d) - 1) ** 0.5), "twice"),
    (check.perplexity_ratio, lambda a, b: (ratio(a, b)[0], -ratio(a, b)[1]), "positive"),
    (check.perplexity_ratio, lambda a, b: (b.mean().exp() - a.mean().exp(), 0.1), "not their ratio"),
    (check.perplexity_ratio, _error(lambda d, a, b: 1.0), "the standard error of this case"),
    (check.perplexity_ratio, lambda a, b: (b - a).mean().exp(), "two numbers"),
    (check.head_logits, lambda *given: logits(*given, scale=len(given[3]) ** -0.5), "original d"),
    (check.head_logits, lambda *given: logits(*given, scale=1), "scale is missing"),
    (check.head_logits, lambda *given: logits(*given, scale=1 / given[4].shape[1]), "divides by d"),
    (check.head_logits, lambda *given: logits(*given).T, "transpose"),
    (check.head_logits, lambda *given: logits_padded(*given, at=torch.arange(len(given[3]))), "appended behind"),
    (check.head_logits, _first_dims, "first dims"),
    (check.head_logits, _first_pairs, "first pairs"),
    (check.head_logits, lambda *given: logits(*given, turn=lambda rows, *_: rows), "rotation is missing"),
    (check.head_logits, lambda *given: logits(*given, turn=_interleaved), "i and i"),
    (check.head_logits, lambda *given: logits(*given[:5], -given[5]), "wrong way"),
    (check.head_logits, _keys_as_they_are, "the keys are turned"),
    (check.head_logits, lambda *given: logits(*given, scale=1, turn=lambda rows, *_: rows), "and the scale"),
    (check.head_logits, lambda *given: given[0], "shape"),
]


class TestAnswers(Answers):
    right, wrong = RIGHT, WRONG
