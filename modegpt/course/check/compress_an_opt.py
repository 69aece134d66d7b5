"""Checks of notebook 08: counting parameters with biases, channels that cannot fire, zeros in heads, a smaller head."""

from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_tensor, passed


def parameter_count(function: Callable) -> None:
    """Exercise 08.1: `parameter_count(query_key, value, mlp, width, heads, vocabulary, positions)` of a small OPT.

    Raises:
        NotYet: naming the part that was counted wrongly.
    """
    cases = (
        ([16, 12, 8], [14, 16, 10], [70, 80, 33], 48, 3, 128, 64),
        ([40, 8], [24, 56], [900, 1200], 384, 6, 8192, 2048),
    )
    for given in cases:
        query_key, value, mlp, width, heads, vocabulary, positions = given
        layers, dims = len(mlp), sum(query_key) + sum(value)
        weights = 2 * width * (heads * dims + sum(mlp))
        selected = 2 * heads * sum(query_key) + sum(mlp)
        norms = (2 * layers + 1) * 2 * width
        right = weights + selected + 2 * layers * width + norms + (vocabulary + positions + 2) * width
        got = answer(function, *given)
        got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
        expect(isinstance(got, int | float), f"the count should be a number, it is a {type(got).__name__}")
        first = heads * (2 * (width + 1) * query_key[0] + 2 * width * value[0]) + (2 * width + 1) * mlp[0]
        mistakes = {
            right - 2 * width: "2 * width too few: the final norm, or the two more rows of positions",
            right - width: "width too few: one of the two more rows of positions, or half of the final norm",
            right + vocabulary * width: "that counts the token embedding twice: the output head is the same tensor",
            right - norms // 2: "a norm of OPT has a weight and a bias",
            right - 2 * width * (2 * layers): "that leaves out the norms of the layers: two in each",
            right - norms: "that leaves out the norms",
            right + heads * sum(value): "the value bias has been folded away: v_proj has none any more",
            right + layers * width: "the value bias has been folded away, the whole of it: v_proj has none any more",
            right - layers * width: "that leaves out one of the biases of out_proj and fc2, which both stay",
            right - 2 * layers * width: "2 * width too few in each layer: a norm, or the biases of out_proj and fc2",
            right - 2 * heads * sum(query_key): "that leaves out the biases of queries and keys: one for each kept dim",
            right - heads * sum(query_key): "queries and keys both have a bias: useless or not, it is there and counts",
            right
            + 2
            * heads
            * (
                sum(value) - sum(query_key)
            ): "queries and keys have a bias, values none: did their ranks change places?",
            right - sum(mlp): "that leaves out the bias of fc1: one for every kept channel",
            right - selected: "that leaves out the biases that were selected: of queries, keys and fc1",
            right - selected - 2 * layers * width: "that leaves out all biases of the linear maps",
            right + sum(mlp) * width: "an MLP channel has two vectors here: OPT has no gate",
            right - (positions + 2) * width: "that leaves out the table of positions, which is learned and counts",
            right - 2 * (heads - 1) * (width * dims + sum(query_key)): "the dims are per head: there are several heads",
            right - weights - selected + layers * first: "the layers differ: add them up, one after the other",
        }
        expect(got == right or got not in mistakes, mistakes.get(got, ""))
        expect(got == right, f"for a model of {layers} layers the count is {right:,}, yours is {got:,.0f}")
    passed("the config alone says how many parameters a compressed OPT has, biases included")


def highest(function: Callable) -> None:
    """Exercise 08.2: `highest(weight, bias, gain, shift)` -> the largest input of each ReLU, (n,).

    Raises:
        NotYet: naming what the norm does to its output, or what was left out.
    """
    draw = torch.Generator().manual_seed(0)
    for n, width in ((9, 6), (5, 16)):
        weight = torch.randn(n, width, generator=draw, dtype=torch.float64) + 0.3
        bias = torch.randn(n, generator=draw, dtype=torch.float64)
        bias[::2] -= 2 * width  # these cannot fire
        gain = torch.rand(width, generator=draw, dtype=torch.float64) + 0.5
        shift = torch.randn(width, generator=draw, dtype=torch.float64)
        found = answer(function, *(t.clone() for t in (weight, bias, gain, shift)))
        expect_tensor(found, (n,), "the answer")
        expect(found.is_floating_point(), "return the highest inputs themselves, not whether they are positive")
        rows = weight * gain

        def centred(matrix: Tensor) -> Tensor:
            return matrix - matrix.mean(1, keepdim=True)

        reach, constant = width**0.5 * centred(rows).norm(dim=1), weight @ shift + bias
        bare = width**0.5 * rows.norm(dim=1)
        mistakes = (
            (reach / width**0.5 + constant, "the norm's output has length sqrt(width) before the gain, not 1"),
            (width**0.5 * reach + constant, "the norm's output has length sqrt(width) before the gain, not width"),
            (bare + constant, "the norm takes the mean off: it cannot reach along the mean of a row, only across"),
            (width**0.5 * (centred(weight) * gain).norm(dim=1) + constant, "gain first, then take the mean off"),
            (width**0.5 * centred(weight).norm(dim=1) + constant, "the gain is missing: it stretches the row"),
            (reach + bias, "the shift of the norm is missing: every token receives weight @ shift"),
            (reach + weight @ shift, "the bias of fc1 is missing"),
            (reach, "the constant is missing: the bias of fc1, and weight @ shift"),
            (reach + (weight * gain) @ shift + bias, "the shift comes after the gain, which does not stretch it"),
            (constant - reach, "that is the smallest input: the largest is wanted"),
            (constant + width**0.5 * centred(rows).abs().amax(1), "more than one entry of z can be other than zero"),
            (width**0.5 * centred(rows).abs().sum(1) + constant, "z lies on a sphere, not in a box"),
        )
        for wrong, message in mistakes:
            expect(not close(found.double(), wrong, 1e-5), message)
        expect(not close(found.double(), (reach + constant).relu(), 1e-5), "before the ReLU: negative values stay")
        z = centred(torch.randn(1000, width, generator=draw, dtype=torch.float64))
        seen = (z * width**0.5 / z.norm(dim=1, keepdim=True) * gain + shift) @ weight.mT + bias
        expect((found.double() >= seen.amax(0) - 1e-5).all(), "random inputs of the norm reach higher than that")
        expect(close(found.double(), reach + constant, 1e-5), "no input of the norm reaches as high as that")
    passed("a channel whose highest input is not positive is silent on every text")


def in_stock_heads(function: Callable) -> None:
    """Exercise 08.3: `in_stock_heads(weight, bias, heads, d)` -> weight (heads * d, width), bias (heads * d,).

    Raises:
        NotYet: naming where the zeros went wrong.
    """
    draw = torch.Generator().manual_seed(1)
    for heads, k, d, width in ((3, 2, 4, 5), (4, 5, 8, 6)):
        weight = torch.randn(heads * k, width, generator=draw, dtype=torch.float64)
        bias = torch.randn(heads * k, generator=draw, dtype=torch.float64)
        found = answer(function, weight, bias, heads, d)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two tensors: the weight and the bias")
        expect_tensor(found[0], (heads * d, width), "the weight")
        expect_tensor(found[1], (heads * d,), "the bias")
        rows, entries = (t.double() for t in found)

        def padded(tensor: Tensor, heads: int = heads, k: int = k, d: int = d) -> Tensor:
            zeros = tensor.new_zeros(heads, d, *tensor.shape[1:])
            zeros[:, :k] = tensor.unflatten(0, (heads, k))
            return zeros.flatten(0, 1)

        behind = torch.cat([weight, weight.new_zeros(heads * (d - k), width)])
        expect(
            not close(rows, behind, 1e-6),
            "the zeros stand behind all heads, so the heads run into each other: every head gets its own",
        )
        scaled = [padded(weight) * scale**0.5 for scale in (d / k, k / d)]
        expect(
            not any(close(rows, each, 1e-6) for each in scaled),
            "no scale: the compressed head divides by sqrt(d) already",
        )
        expect((rows == 0).all(1).sum() == heads * (d - k), f"{heads * (d - k)} rows of the weight should be zero")
        at = padded(torch.ones(heads * k, dtype=torch.float64)).bool()
        own = rows.unflatten(0, (heads, d)), weight.unflatten(0, (heads, k))
        expect(
            all(close(a.mT @ a, b.mT @ b, 1e-6) for a, b in zip(*own, strict=True)),
            "a head holds rows of another one, or not all of its own",
        )
        expect(close(rows, padded(weight), 1e-6), "put the kept rows of a head first, in their order")
        expect(
            not close(entries, torch.cat([bias, bias.new_zeros(heads * (d - k))]), 1e-6),
            "the zeros of the bias stand behind all heads: they go where those of the weight go",
        )
        expect(not entries[~at].any(), "a padded dim must be zero for every token: its bias is zero as well")
        expect(close(entries, padded(bias), 1e-6), "the bias should be spread as the rows of the weight are")
    passed("a dim that is zero in queries and keys adds nothing to any logit")


def compressed_head(function: Callable) -> None:
    """Exercise 08.4: `compressed_head(x, query, key, biases, kept, pair, output)` -> output (tokens, width).

    Raises:
        NotYet: naming the bias, the scale or the mask that is wrong.
    """
    draw = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    for tokens, width, d, kept in ((6, 10, 8, [0, 3, 6]), (9, 24, 16, [1, 2, 4, 6, 9, 15])):
        x, J, later = normal(tokens, width), torch.tensor(kept), torch.ones(tokens, tokens).triu(1).bool()
        query, key = (normal(width, d) / width**0.5 for _ in range(2))
        biases, pair, output = normal(3, d), (normal(width, d // 2), normal(d // 2, width)), normal(d, width)
        given = (x.clone(), query.clone(), key.clone(), tuple(biases.clone()), J.clone(), tuple(pair), output.clone())
        found = answer(function, *given)
        expect_tensor(found, (tokens, width), "the output")
        keys, values = (x @ key + biases[1])[:, J], x @ pair[0] @ pair[1]
        constant = biases[2] @ output

        def rows(bias: Tensor, scale: float = d**-0.5, mask: Tensor = later, hidden: float = -torch.inf) -> Tensor:
            logits = (x @ query[:, J] + bias) @ keys.mT * scale  # noqa: B023
            return logits.masked_fill(mask, hidden).softmax(-1) @ values  # noqa: B023

        own = biases[0][J]
        logits = (x @ query[:, J] + own) @ keys.mT * d**-0.5
        mistakes = (
            (rows(own, hidden=0.0) + constant, "a logit of 0 is not hidden, softmax gives it weight: fill in -inf"),
            (logits.softmax(-1).tril() @ values + constant, "mask before the softmax, so that the weights sum to one"),
            (rows(own, mask=later.mT) + constant, "the mask is turned over: a token sees itself and what came before"),
            (
                logits.masked_fill(later, -torch.inf).softmax(0) @ values + constant,
                "softmax over the keys, the last axis: each token's weights sum to one",
            ),
            (rows(biases[1][J]) + constant, "the biases of queries and keys changed places"),
            (
                rows(own) + constant @ torch.linalg.pinv(pair[1]) @ pair[1],
                "the value bias went through Q, which holds only a part of W_O: fold it exactly, through W_O",
            ),
            (rows(own, len(J) ** -0.5) + constant, "the scale stays 1/sqrt(original d), not 1/sqrt(kept dims)"),
            (rows(own, 1.0) + constant, "the scale is missing: divide by sqrt(d)"),
            (rows(own, width**-0.5) + constant, "the scale is that of a head, 1/sqrt(d), not of the model's width"),
            (rows(0 * own) + constant, "the query bias is missing: kept dims keep their entries of it"),
            (rows(biases[0][: len(J)]) + constant, "the query bias is cut, not selected: take its entries `kept`"),
            (rows(own, mask=later & False) + constant, "a token may not look ahead: mask the keys that come later"),
            (rows(own), "the value bias is dropped: every token still receives b_V W_O"),
            (rows(own) + tokens * constant, "attention weights sum to one: every token receives b_V W_O once"),
        )
        for wrong, message in mistakes:
            expect(not close(found.double(), wrong, 1e-5), message)
        expect(
            close(found.double(), rows(own) + constant, 1e-5),
            "the output differs: selected queries and keys with their biases, a softmax over the tokens so far, "
            "its weights times x P Q, then the folded bias",
        )
    passed("selected biases before the softmax, a folded one behind it")
