"""Checks of notebook 08: counting parameters with biases, an intercept, zeros inside heads, one head made smaller."""

from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.check.verdict import answer, close, expect, expect_tensor, passed


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
        mistakes = {
            right - 2 * width: "the table of positions has two rows more than there are positions",
            right + vocabulary * width: "that counts the token embedding twice: the output head is the same tensor",
            right - norms // 2: "a norm of OPT has a weight and a bias",
            right - 2 * width * (2 * layers): "that leaves out the norms of the layers: two in each",
            right - norms: "that leaves out the norms",
            right + heads * sum(value): "the value bias has been folded away: v_proj has none any more",
            right - 2 * layers * width: "that leaves out the biases of out_proj and fc2, which stay",
            right - 2 * heads * sum(query_key): "that leaves out the biases of queries and keys: one for each kept dim",
            right - sum(mlp): "that leaves out the bias of fc1: one for every kept channel",
            right - selected: "that leaves out the biases that were selected: of queries, keys and fc1",
            right - selected - 2 * layers * width: "that leaves out all biases of the linear maps",
            right + sum(mlp) * width: "an MLP channel has two vectors here: OPT has no gate",
            right - (positions + 2) * width: "that leaves out the table of positions, which is learned and counts",
        }
        expect(got == right or got not in mistakes, mistakes.get(got, ""))
        expect(got == right, f"for a model of {layers} layers the count is {right:,}, yours is {got:,.0f}")
    passed("the config alone says how many parameters a compressed OPT has, biases included")


def with_intercept(function: Callable) -> None:
    """Exercise 08.2: `with_intercept(gram, mean, down, bias, kept)` -> W' (k, width) and the new bias (width,).

    Raises:
        NotYet: naming what was not centred or not given to the bias.
    """
    draw = torch.Generator().manual_seed(0)
    for tokens, n, width, kept in ((200, 7, 4, [0, 2, 5]), (500, 12, 5, [1, 3, 4, 8, 9, 11])):
        mix = torch.randn(n, n, generator=draw, dtype=torch.float64)
        a = (torch.randn(tokens, n, generator=draw, dtype=torch.float64) @ mix + 0.5).relu()
        down = torch.randn(n, width, generator=draw, dtype=torch.float64)
        bias = torch.randn(width, generator=draw, dtype=torch.float64)
        gram, mean, J = a.mT @ a / tokens, a.mean(0), torch.tensor(kept)
        found = answer(function, *(t.clone() for t in (gram, mean, down, bias, J)))
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two tensors: the matrix and the bias")
        expect_tensor(found[0], (len(kept), width), "the matrix")
        expect_tensor(found[1], (width,), "the bias")
        matrix, new = (t.double() for t in found)
        centred = gram - mean.outer(mean)
        right = torch.linalg.solve(centred[J][:, J], centred[J] @ down)
        plain = torch.linalg.solve(gram[J][:, J], gram[J] @ down)
        expect(not close(matrix, plain, 1e-5), "that regression runs through the origin: centre the Gram matrix first")
        expect(not close(matrix, down[J], 1e-5), "that only selects rows: solve again, with the centred Gram matrix")
        expect(close(matrix, right, 1e-5), "the matrix is not the least-squares one of the centred activations")
        shift = mean @ down - mean[J] @ right
        mistakes = (
            (bias, "the bias stays as it was: what does the mean token now receive less?"),
            (shift, "the old bias is missing: the shift comes on top of it"),
            (bias - shift, "the shift has the wrong sign: it restores what the mean token lost"),
            (bias + mean @ down, "the kept channels still give their mean: take off what they give"),
            (bias + mean @ down - mean[J] @ down[J], "the kept channels now act through the new matrix, not the old"),
        )
        for wrong, message in mistakes:
            expect(not close(new, wrong, 1e-5), message)
        expect(close(new, bias + shift, 1e-5), "the mean token should receive what it received before")
    passed("the matrix fits the fluctuations, the bias the mean")


def in_stock_heads(function: Callable) -> None:
    """Exercise 08.3: `in_stock_heads(weight, bias, heads, d)` -> weight (heads * d, width), bias (heads * d,).

    Raises:
        NotYet: naming where the zeros went wrong.
    """
    draw = torch.Generator().manual_seed(1)
    for heads, k, d, width in ((3, 2, 4, 5), (4, 5, 8, 6)):
        weight = torch.randn(heads * k, width, generator=draw, dtype=torch.float64)
        bias = torch.randn(heads * k, generator=draw, dtype=torch.float64)
        found = answer(function, weight.clone(), bias.clone(), heads, d)
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
        scaled = padded(weight) * (d / k) ** 0.5
        expect(not close(rows, scaled, 1e-6), "no scale: the compressed head divides by sqrt(d) already")
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

        def rows(bias: Tensor, scale: float = d**-0.5, mask: Tensor = later) -> Tensor:
            logits = (x @ query[:, J] + bias) @ keys.mT * scale  # noqa: B023
            return logits.masked_fill(mask, -torch.inf).softmax(-1) @ values  # noqa: B023

        own = biases[0][J]
        mistakes = (
            (rows(own, len(J) ** -0.5) + constant, "the scale stays 1/sqrt(original d), not 1/sqrt(kept dims)"),
            (rows(own, 1.0) + constant, "the scale is missing: divide by sqrt(d)"),
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
