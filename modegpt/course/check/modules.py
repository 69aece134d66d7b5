"""Checks of notebook 01, What can be compressed."""

from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.allocate import LayerShape
from modegpt.course.check.verdict import answer, close, expect, expect_tensor, number, passed


def channels_left(function: Callable[[float, int, int, int, int, int, bool], float]) -> None:
    """Exercise 01.1: MLP channels that are left when the MLP alone pays for the block's ratio.

    Args:
        function: (ratio, width, heads, kv_heads, head_dim, channels, gated) -> channels left, not rounded.

    Raises:
        NotYet: a wrong count; a missing gate, ungrouped keys and values, and a ratio of the MLP alone are named.
    """
    problems = (
        (0.25, 512, 8, 2, 64, 1400, True),
        (0.3, 384, 6, 6, 64, 1536, False),
        (0.1, 96, 8, 2, 16, 200, True),  # the heads together are wider than the model
    )
    for ratio, width, heads, kv_heads, head_dim, channels, gated in problems:
        found = answer(function, ratio, width, heads, kv_heads, head_dim, channels, gated)
        value = number(found, "the result")
        sizes = {
            "ratio": ratio,
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "channels": channels,
            "maps": 3 if gated else 2,
        }
        right = _left(**sizes)
        if _near(value, right):
            continue
        case = f"width {width}, {heads} query and {kv_heads} key/value heads, {'gated' if gated else 'plain'} MLP"
        expect(
            not _near(value, _left(**sizes | {"maps": 2 if gated else 3})),
            f"count the gate where there is one, and only there ({case})",
        )
        expect(
            not _near(value, _left(**sizes | {"kv_heads": heads})),
            f"keys and values have kv_heads heads, not as many as queries ({case})",
        )
        expect(
            not _near(value, _left(**sizes | {"heads": kv_heads})),
            f"queries and outputs have all heads, not only kv_heads ({case})",
        )
        expect(
            not _near(value, _left(**sizes | {"head_dim": width // heads})),
            f"use head_dim: it need not be width / heads ({case})",
        )
        expect(
            not _near(value, (1 - ratio) * channels),
            "that removes the ratio from the MLP alone: it must also pay for the two attention pairs",
        )
        expect(not _near(value, channels - right), "that is the number of channels removed, not of those left")
        expect(
            not _near(value, _left(**sizes | {"ratio": 1 - ratio})),
            "ratio is the share that goes, not the share that stays",
        )
        expect(not _near(value, right / channels), "that is a share of the channels: return how many are left")
        per_channel = (3 if gated else 2) * width
        dims = head_dim * width * (heads + kv_heads)
        expect(
            not _near(value, channels - ratio * (dims + channels * per_channel) / per_channel),
            "there are two attention pairs, query-key and value-output: that counts one of them",
        )
        expect(
            not _near(value, (1 - ratio) * (2 * dims + channels * per_channel) / per_channel),
            "that gives all that is left to the MLP: the attention pairs keep theirs",
        )
        expect(
            not (value == int(value) and abs(value - right) <= 1),
            f"do not round: {value:g} is near, the exact value has a fraction ({case})",
        )
        expect(False, f"{value:g} channels are not right ({case}, ratio {ratio})")
    passed("the MLP pays for the whole block, gate and grouped heads counted")


def _left(ratio: float, width: int, heads: int, kv_heads: int, head_dim: int, channels: int, maps: int) -> float:
    per_dim = width * (heads + kv_heads)
    shape = LayerShape(head_dim, head_dim, channels, per_dim, per_dim, maps * width)
    return channels - ratio * shape.total / shape.mlp_cost


def _near(value: float, other: float) -> bool:
    return abs(value - other) <= 1e-6 * max(abs(other), 1)


def rotate(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 01.2: the rotary embedding by complex multiplication.

    Args:
        function: (x (tokens, d), angles (tokens, d / 2)) -> rotated x (tokens, d), real.

    Raises:
        NotYet: a wrong rotation; interleaved pairs, the opposite turn and swapped halves are named.
    """
    draw = torch.Generator().manual_seed(12)
    for tokens, half in ((5, 4), (3, 8)):
        x = torch.randn(tokens, 2 * half, dtype=torch.float64, generator=draw)
        angles = 3 * torch.rand(tokens, half, dtype=torch.float64, generator=draw)
        value = answer(function, x, angles)
        expect(
            not (isinstance(value, Tensor) and value.is_complex()),
            "the result is complex: lay its real part and its imaginary part side by side",
        )
        expect_tensor(value, tuple(x.shape), "the result")
        value = value.to(x.dtype)
        low, high, cos, sin = x[:, :half], x[:, half:], angles.cos(), angles.sin()
        right = torch.cat([low * cos - high * sin, low * sin + high * cos], -1)
        if close(value, right, 1e-5):
            continue
        even, odd = x[:, ::2], x[:, 1::2]
        interleaved = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(1)
        expect(
            not close(value, interleaved, 1e-5),
            "that turns the neighbors (2i, 2i + 1): here dim i is paired with dim i + d/2",
        )
        turned = torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)
        expect(
            not close(value, turned, 1e-5),
            "you read the pairs as (2i, 2i + 1) and write them as (i, i + d/2): read them as (i, i + d/2) too",
        )
        back = torch.cat([low * cos + high * sin, high * cos - low * sin], -1)
        expect(not close(value, back, 1e-5), "that turns by minus the angle: multiply by exp(+i angle)")
        swapped = right.roll(half, -1)
        expect(
            not close(value, swapped, 1e-5), "the halves are swapped: dim i is the real part, i + d/2 the imaginary one"
        )
        paired = torch.stack([right[:, :half], right[:, half:]], -1).flatten(1)
        expect(
            not close(value, paired, 1e-5),
            "the numbers are right, their order is not: view_as_real interleaves, but all real parts come first here",
        )
        expect(False, "the rotation is not right: compare with x cos + rotate_half(x) sin for one token")
    passed("dims i and i + d/2 turn as one complex number")


def fold_value_bias(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 01.3: the output bias that makes the values' bias needless, with grouped queries.

    Args:
        function: (b_V (kv_heads, d), W_O (kv_heads, group, d, width), b_O (width,)) -> new b_O (width,).

    Raises:
        NotYet: a wrong bias; a forgotten b_O and heads of a group that are left out or averaged are named.
    """
    draw = torch.Generator().manual_seed(13)
    for kv_heads, group, d, width in ((2, 3, 4, 7), (3, 1, 5, 6)):
        b_V = torch.randn(kv_heads, d, dtype=torch.float64, generator=draw)
        W_O = torch.randn(kv_heads, group, d, width, dtype=torch.float64, generator=draw)
        b_O = torch.randn(width, dtype=torch.float64, generator=draw)
        value = answer(function, b_V, W_O, b_O)
        expect_tensor(value, (width,), "the new bias")
        value, each = value.to(b_O), torch.einsum("kd,kgdw->kgw", b_V, W_O)
        constant = each.sum((0, 1))
        if close(value, b_O + constant, 1e-5):
            continue
        expect(not close(value, constant, 1e-5), "the old output bias b_O is lost: add to it")
        expect(not close(value, b_O - constant, 1e-5), "the sign: the constant is added to b_O, not taken away")
        if group > 1:
            expect(
                not close(value, b_O + each.mean(1).sum(0), 1e-5),
                "you average over a group: each of its query heads adds its own b_V W_O",
            )
            expect(
                not close(value, b_O + each[:, 0].sum(0), 1e-5),
                "only the first query head of each group is counted: all of them read the same value head",
            )
        if kv_heads > 1 and group > 1:
            heads, other = W_O.flatten(0, 1), b_V.repeat(group, 1)
            expect(
                not close(value, b_O + torch.einsum("hd,hdw->w", other, heads), 1e-5),
                "query head h reads value head h // group: the heads of a group are neighbours (repeat_interleave)",
            )
        expect(not close(value, b_O + each.mean((0, 1)), 1e-5), "you average over the heads: their outputs are summed")
        expect(False, "the new bias is not right: it is b_O plus one row vector b_V W_O for every query head")
    passed("the values' bias is a constant of the output")


def whiten(function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Exercise 01.4: the same value-output products with uncorrelated values.

    Args:
        function: (W_V (width, d), W_O (group, d, width), G (d, d)) -> new W_V and W_O of the same shapes; G is the
            Gram matrix of the values, that of the new ones is to be the identity.

    Raises:
        NotYet: products that change or values that stay correlated; W_O transformed on the wrong side, an inverse
            that is missing or one too many, and a wrong root are named.
    """
    draw = torch.Generator().manual_seed(14)
    for width, group, d, tokens in ((10, 3, 4, 40), (7, 1, 5, 30)):
        W_V = torch.randn(width, d, dtype=torch.float64, generator=draw)
        W_O = torch.randn(group, d, width, dtype=torch.float64, generator=draw)
        X = torch.randn(tokens, width, dtype=torch.float64, generator=draw)
        G = (X @ W_V).mT @ (X @ W_V) / tokens
        pair = answer(function, W_V, W_O, G)
        expect(isinstance(pair, (tuple, list)) and len(pair) == 2, "return two tensors: the new W_V and the new W_O")
        for name, new, old in (("W_V", pair[0], W_V), ("W_O", pair[1], W_O)):
            expect_tensor(new, tuple(old.shape), f"the new {name}")
        value, output = (new.to(W_V) for new in pair)
        M = torch.linalg.lstsq(W_V, value).solution
        if not close(value @ output, W_V @ W_O, 1e-5):
            expect(not close(output, W_O, 1e-5), "W_O is unchanged: what W_V is multiplied by, W_O must undo")
            expect(not close(output, M @ W_O, 1e-5), "W_V and W_O both got M: one of them needs the inverse")
            expect(not close(output, M.mT @ W_O, 1e-5), "W_O got M^T, which is the inverse of a rotation only")
            inverse = torch.linalg.pinv(M)
            expect(not close(output, inverse.mT @ W_O, 1e-5), "W_O got the inverse transposed: it is M^-1 W_O")
            expect(False, "the products W_V W_O are not what they were: use W_V M and M^-1 W_O")
        new_gram = (X @ value).mT @ (X @ value) / tokens
        eye = torch.eye(d, dtype=G.dtype)
        if close(new_gram, eye, 1e-4):
            continue
        expect(not close(value, W_V, 1e-5), "nothing changed: the values have the Gram matrix they had")
        expect(
            not close(M, torch.linalg.inv(G), 1e-5),
            "M is G^-1, which overshoots: the new Gram matrix is G^-1 too. M needs the inverse of a root of G",
        )
        lower = torch.linalg.cholesky(G)
        expect(
            not close(M, torch.linalg.inv(lower), 1e-5),
            "M is L^-1: with G = L L^T the condition M^T G M = I asks for L^-T",
        )
        power = torch.linalg.eigh(G)
        root = power.eigenvectors * power.eigenvalues.sqrt() @ power.eigenvectors.mT
        expect(
            not any(close(M, wrong, 1e-5) for wrong in (root, lower, lower.mT, G)),
            "the inverse is on the wrong matrix: W_V gets the inverse of the root, W_O the root",
        )
        diagonal = new_gram.diagonal()
        expect(
            not close(value.mT @ value, eye, 1e-6),
            "the columns of W_V are orthonormal now, which says nothing of the values X W_V: use G",
        )
        expect(
            not close(diagonal, torch.ones_like(diagonal), 1e-4),
            "the values have unit power but are still correlated: use all of G, not only its diagonal",
        )
        expect(
            not close(new_gram, torch.diag(diagonal), 1e-6),
            "the new values are uncorrelated, but their power is not one: scale each of them",
        )
        expect(False, "the new values are still correlated: M^T G M should be the identity")
    passed("same products, and the values are uncorrelated with unit power")
