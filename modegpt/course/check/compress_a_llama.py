"""Checks of notebook 07: counting parameters, measuring perplexity, comparing in pairs, padding a head."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_tensor, near, number, passed


def parameter_count(function: Callable) -> None:
    """Check `parameter_count(query_key, value, mlp, width, heads, kv_heads, vocabulary, tied)` of a Llama.

    Raises:
        NotYet: naming the part that was counted wrongly.
    """
    cases = (
        (([16, 12, 8], [14, 16, 10], [70, 80, 33], 48, 12, 4, 128), True),
        (([16, 4], [8, 2], [21, 40], 32, 6, 3, 50), False),
        (([64], [40], [1000], 576, 9, 3, 49152), True),
    )
    for (query_key, value, mlp, width, heads, kv_heads, vocabulary), tied in cases:
        given = (query_key, value, mlp, width, heads, kv_heads, vocabulary, tied)
        got = number(answer(function, *given), "the count")
        dims, layers, table = sum(query_key) + sum(value), len(mlp), vocabulary * width
        blocks = dims * width * (heads + kv_heads) + 3 * sum(mlp) * width
        norms, tables = (2 * layers + 1) * width, table * (1 if tied else 2)
        right = blocks + norms + tables
        one_head, apart = dims * width, heads - kv_heads
        a_value = "a value dim is a column of each value head and a row in the output of each query head"
        mistakes = {
            right + table: "that counts the embedding table twice, but tied embeddings are one tensor",
            right - table: "an untied output head is a table of its own, next to the embeddings",
            right - tables: "that leaves out the embeddings",  # tied: the same number as above
            right - norms: "that leaves out the norms: two in every layer and one at the end, `width` weights each",
            right - width: "that leaves out the last norm, behind all layers",
            right - layers * width: "every layer has two norms, that counts one",
            right - (layers - 1) * 2 * width: "every layer has two norms of its own",
            right + one_head * apart: "a key or value dim is paid for once per key/value head, "
            "a query or output dim once per query head: that takes `heads` for both",
            right
            - one_head
            * apart: "queries and outputs have `heads` heads, not `kv_heads`: that takes `kv_heads` for both",
            right - one_head * heads: "that counts keys and values, and leaves out queries and outputs",
            right - one_head * kv_heads: "that counts queries and outputs, and leaves out keys and values",
            right
            - one_head
            * (heads + kv_heads - 2): "that counts one head of each kind: the kept dims are those of one head",
            right
            - sum(value) * width * (heads + kv_heads): "that leaves out value-output: values and outputs are cut, too",
            right - sum(query_key) * width * (heads + kv_heads): "that leaves out query-key",
            right + sum(value) * width * apart: a_value,
            right - sum(value) * width * apart: a_value,
            norms
            + tables
            + layers * (query_key[0] + value[0]) * width * (heads + kv_heads)
            + 3 * layers * mlp[0] * width: "that takes the first layer's sizes for all, every layer has its own",
            right - sum(mlp) * width: "an MLP channel of a Llama has three vectors: gate, up and down",
        }
        if not tied:  # then the table does count twice
            mistakes.pop(right + table)
        expect(got == right or got not in mistakes, mistakes.get(got))
        expect(got == right, f"for a model of {layers} layers the count is {right:,}, yours is {got:,.0f}")
    passed("the ranks alone say how many parameters a compressed Llama has")


def perplexity_of(function: Callable) -> None:
    """Check `perplexity_of(losses)`: token losses of windows of unequal lengths -> perplexity.

    Raises:
        NotYet: naming the wrong mean or the precision that was lost.
    """
    draw = torch.Generator().manual_seed(0)
    losses = [3 * torch.rand(count, generator=draw, dtype=torch.float64) for count in (40, 7, 300)]
    losses[1] += 4
    every = torch.cat(losses)
    right = every.mean().exp().item()
    got = number(answer(function, [loss.clone() for loss in losses]), "the perplexity")
    window_means = torch.stack([loss.mean() for loss in losses])
    mistakes = {
        window_means.mean().exp().item(): "that averages the windows' means, but the windows have different numbers of "
        "tokens: every token counts the same",
        every.exp().mean().item(): "that is a mean of exps: the mean comes first, over losses, then one exp",
        window_means.exp().mean().item(): "that averages the windows' perplexities: the mean comes first, then one exp",
        (every.sum() / len(losses)).exp().item(): "that divides by the number of documents: a mean over all tokens",
        every.sum().exp().item(): "that is the exp of a sum: the mean is over all tokens",
        every.mean().item(): "that is the mean loss: perplexity is its exponential",
        2 ** every.mean().item(): "the losses are in nats, so the base is e, not 2",
        every.median().exp().item(): "that takes the median, which forgets the hard tokens",
    }
    for value, message in mistakes.items():
        expect(not near(got, value), message)
    expect(near(got, right), f"the perplexity of this case is {right:.6g}, yours is {got:.6g}")

    half = [5 + torch.rand(count, generator=draw).bfloat16() for count in (6000, 20000)]
    right = torch.cat(half).double().mean().exp().item()
    got = number(answer(function, [loss.clone() for loss in half]), "the perplexity of losses in bfloat16")
    message = (
        "for losses in bfloat16 the mean has three digits at most: upcast to float32 before the mean, and stay there"
    )
    expect(near(got, right, 1e-4), message)
    passed("one mean over all tokens, one exp, and no half precision on the way")


def perplexity_ratio(function: Callable) -> None:
    """Check `perplexity_ratio(first, second)`: the ratio of two perplexities and its standard error, in pairs.

    Both get (windows,) mean losses on the same windows of one length.

    Raises:
        NotYet: naming the unpaired error, the mean or exponential in the wrong order, or the wrong divisor.
    """
    draw = torch.Generator().manual_seed(1)
    for count in (5, 12):
        first = 3 + torch.randn(count, generator=draw, dtype=torch.float64)
        second = first + 0.4 + 0.1 * torch.randn(count, generator=draw, dtype=torch.float64)
        found = answer(function, first, second)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two numbers: the ratio and its error")
        ratio, error = number(found[0], "the ratio"), number(found[1], "the standard error")
        change = second - first
        right = change.mean().exp().item()
        mistakes = {
            1 / right: "the ratio is turned around: it says how many times the first perplexity the second one is",
            change.mean().item(): "that is the difference of the mean losses: its exponential is the ratio",
            change.exp().mean().item(): "that averages the windows' ratios: the mean comes first, then one exp",
            (
                second.exp().mean() / first.exp().mean()
            ).item(): "that averages the windows' perplexities: the mean comes first, over losses",
            (second.mean() / first.mean()).item(): "that is the ratio of the losses, not of the perplexities",
        }
        difference = second.mean().exp() - first.mean().exp()
        mistakes[difference.item()] = "that is the difference of the perplexities, not their ratio"
        for value, message in mistakes.items():
            expect(not near(ratio, value), message)
        expect(near(ratio, right), f"the ratio of this case is {right:.4f}, yours is {ratio:.4f}")
        spread, of_mean = change.std().item(), change.std().item() / count**0.5
        unpaired = ((first.var() + second.var()) / count).sqrt().item()
        target = right * of_mean
        independent = (
            "that is the error of two independent samples: these are the same windows, "
            "so take the spread of the differences"
        )
        mistakes = {
            of_mean: "that is the error of the mean difference: what does a small change of x change in exp(x)?",
            right * unpaired: independent,
            unpaired: independent,
            right * spread: "that is the spread of single windows: the error of their mean is smaller by sqrt(windows)",
            target * (1 - 1 / count) ** 0.5: "the windows are a sample, so the variance is divided by windows - 1",
            right * of_mean**2: "that takes the variance of the mean: its root is missing",
            change.exp().std().item() / count**0.5: "that is the error of a mean of the windows' ratios: take the mean "
            "difference's, times the slope of exp there",
            right
            * math.expm1(
                of_mean
            ): "that moves the mean by a whole standard error: to first order, take the slope of exp",
            target / right**2: "divided by the ratio: the slope of exp(x) at x is exp(x), a factor",
            right
            * spread
            / (count - 1) ** 0.5: "n - 1 twice: `std` has it already, the error of a mean divides by sqrt(n)",
            right * spread / count: "divide by sqrt(windows), not by windows",
        }
        for value, message in mistakes.items():
            expect(not near(error, value), message)
        expect(error > 0, "a standard error is positive")
        expect(near(error, target), f"the standard error of this case is {target:.5f}, yours is {error:.5f}")
    passed("the difficulty of the windows cancels, what is left is the difference between the models")


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin


def _padded(x: Tensor, weights: tuple[Tensor, Tensor], at: Tensor, cos: Tensor, sin: Tensor, turn: Callable) -> Tensor:
    """Logits without a scale: the kept dims stand at the places `at` of a head whose other dims are zero."""
    rows = torch.zeros(2, len(x), cos.shape[1], dtype=x.dtype)
    rows[:, :, at] = torch.stack([x @ weight for weight in weights])
    query, key = turn(rows, cos, sin)
    return query @ key.mT


def head_logits(function: Callable) -> None:
    """Check `head_logits(x, query, key, kept, cos, sin)`: scaled logits of one compressed rotary head.

    Raises:
        NotYet: naming the wrong scale, the wrong angles or the wrong pairs.
    """
    draw = torch.Generator().manual_seed(2)
    for tokens, width, d, lower in ((6, 10, 8, [0, 3]), (5, 24, 16, [1, 4, 6])):
        half, rank, pairs = d // 2, 2 * len(lower), torch.arange(len(lower))
        kept = torch.tensor([*lower, *(i + half for i in lower)])
        x = torch.randn(tokens, width, generator=draw, dtype=torch.float64)
        query, key = (torch.randn(width, rank, generator=draw, dtype=torch.float64) for _ in range(2))
        angles = torch.arange(tokens).double()[:, None] * 100 ** (-torch.arange(half).double() / half)
        cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
        value = answer(function, *(t.clone() for t in (x, query, key, kept, cos, sin)))
        expect_tensor(value, (tokens, tokens), "the logits")

        one = _padded(x, (query, key), kept, cos, sin, _turn)  # without a scale
        behind = _padded(x, (query, key), torch.arange(rank), cos, sin, _turn)
        first_pairs = _padded(x, (query, key), torch.cat([pairs, pairs + half]), cos, sin, _turn)
        q, k = (_turn(x @ weight, cos[:, :rank], sin[:, :rank]) for weight in (query, key))
        turned_q = _turn(x @ query, cos[:, kept], sin[:, kept])
        backwards = _padded(x, (query, key), kept, cos, -sin, _turn)
        angle = "a kept dim turns by its own angle, so gather cos and sin with `kept`"
        mistakes = (
            (
                one / rank**0.5,
                "the scale stays 1/sqrt(original d): that divides by sqrt(kept dims), which makes every "
                "attention sharper than the dense head's",
            ),
            (one, "the scale is missing: divide by sqrt(d)"),
            (one / d, "that divides by d: the scale is 1/sqrt(d)"),
            (one.mT / d**0.5, "that is the transpose: queries are rows, keys are columns"),
            (behind / d**0.5, "the zeros were appended behind: every kept dim goes back to its own place, `kept`"),
            (q @ k.mT / d**0.5, f"that takes the angles of the first dims: {angle}"),
            (first_pairs / d**0.5, f"that takes the angles of the first pairs: {angle}"),
            (x @ query @ (x @ key).mT / d**0.5, "the rotation is missing: queries and keys are turned first"),
            (x @ query @ (x @ key).mT, "the rotation is missing, and the scale 1/sqrt(d) is"),
            (turned_q @ (x @ key).mT / d**0.5, "the keys are turned, too, each at its own position"),
            (backwards / d**0.5, "that turns the wrong way: the rotated half is [-high, low]"),
        )
        for wrong, message in mistakes:
            expect(not close(value.double(), wrong, 1e-5), message)
        expect(
            close(value.double(), one / d**0.5, 1e-5),
            "the logits differ from those of the head padded with zeros to its original dims; pairs are the dims "
            "i and i + d/2 of the original head",
        )
    passed("zeros at the dropped dims change no logit, if every dim keeps its angle and the scale its d")
