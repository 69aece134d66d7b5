"""The checks of notebook 02: Gram matrices in a stream, errors from them, whitening, the numbers a pair needs."""

from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_close, expect_tensor, passed


def _inputs(tokens: int, n: int, seed: int) -> Tensor:
    """Anisotropic activations, (tokens, n) float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, n, generator=generator, dtype=torch.float64) @ mixing


def streaming_gram(function: Callable[[list[tuple[Tensor, Tensor]]], Tensor]) -> None:
    """Exercise 02.1: `function([(X, mask), ...])` is the mean of x^T x over the tokens that the mask calls real.

    Raises:
        NotYet: a wrong answer; names padding that counts, a mean over batches or positions, squares in half precision.
    """
    samples, length, n = 3, 6, 5
    generator = torch.Generator().manual_seed(2)
    batches = []
    for lengths in ((6, 6, 5), (2, 1, 3), (4, 0, 6)):  # one sample is nothing but padding
        X = torch.randn(samples, length, n, generator=generator, dtype=torch.float64) + 0.5
        batches.append((X, (torch.arange(length) < torch.tensor(lengths)[:, None]).long()))
    C = answer(function, [(X.clone(), mask.clone()) for X, mask in batches])
    expect_tensor(C, (n, n), "C")
    dtype, C = C.dtype, C.double()

    real = [X[mask.bool()] for X, mask in batches]
    everything = torch.cat([X.flatten(0, 1) for X, _ in batches])
    rows = torch.cat(real)
    total = rows.mT @ rows
    target = total / len(rows)
    mistakes = {
        "padding counts: select the rows whose mask is 1 before anything else": everything.mT
        @ everything
        / len(everything),
        "padding is in the sum, though not in the number of tokens": everything.mT @ everything / len(rows),
        "the sum has real tokens only, but is divided by all positions: count with the mask too": total
        / len(everything),
        "that is the sum: divide by the number of real tokens": total,
        "that divides by the number of batches, not of tokens": total / len(batches),
        "that divides by the number of samples, not of tokens": total / (samples * len(batches)),
        "a mean of batch means gives tokens of short batches more weight: divide once, at the end": sum(
            r.mT @ r / len(r) for r in real
        )
        / len(real),
        "a Gram matrix is not centered: do not subtract the mean": torch.cov(rows.mT, correction=0),
    }
    for message, wrong in mistakes.items():
        expect(not close(C, wrong, 1e-6), message)
    picked = [X[mask] for X, mask in batches]  # the mask as a list of samples
    picked = torch.cat([rows.flatten(0, -2) for rows in picked])
    wrong = picked.mT @ picked
    expect(
        not any(close(C * scale, wrong, 1e-6) for scale in (1, len(picked), len(rows))),
        "the mask holds integers, so X[mask] picks samples 0 and 1: convert it with .bool() first",
    )
    expect(close(C, target, 1e-6), "C is not the mean of x^T x over the real tokens")
    expect(dtype == torch.float64, f"C is {dtype}: add up, and return, float64")

    half = [((100 * X).half(), mask) for X, mask in batches]
    before = [X.clone() for X, _ in half]
    C = answer(function, half)
    expect(
        isinstance(C, Tensor) and torch.isfinite(C).all(),
        "float16 activations overflow: squares beyond 65504 are inf, so upcast before you multiply",
    )
    rows = torch.cat([X.double()[mask.bool()] for X, mask in half])
    expect(
        close(C.double(), rows.mT @ rows / len(rows), 1e-10),
        "on float16 activations digits are lost: upcast before you multiply, and add up in float64",
    )
    expect(
        all(torch.equal(a, X) for a, (X, _) in zip(before, half, strict=True)),
        "the batches must not be changed in place",
    )
    passed("padding counts nowhere, every real token once, and squares are taken in full precision.")


def error_from_gram(function: Callable[[Tensor, Tensor, Tensor], Tensor | float]) -> None:
    """Exercise 02.2: `function(C, W, W_new)` is the relative output error ||X (W - W_new)||_F / ||X W||_F.

    Raises:
        NotYet: a wrong answer; names a missing root, an absolute or a weight error, C taken twice.
    """
    X = _inputs(50, 6, 4)
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    W_new = W + 0.3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    C, D = X.mT @ X / len(X), W - W_new
    value = answer(function, C, W, W_new)
    value = torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value
    expect_tensor(value, (), "the error")
    value = value.double()

    def trace(M: Tensor, A: Tensor) -> Tensor:
        return (A.mT @ M @ A).trace()

    target = (X @ D).norm() / (X @ W).norm()
    mistakes = {
        "that is the squared error: take the root": target**2,
        "that is the error itself: divide by the size of the output X W": trace(C, D).sqrt(),
        "that is the squared error itself: divide by tr(W^T C W) and take the root": trace(C, D),
        "that is the error of the weights: C does not appear": D.norm() / W.norm(),
        "C is used twice: ||C D||_F is not ||C^(1/2) D||_F": (C @ D).norm() / (C @ W).norm(),
        "the root is taken of the numerator only": trace(C, D).sqrt() / trace(C, W),
        "that divides by the size of W, not of the output X W": trace(C, D).sqrt() / W.norm(),
        "that divides by the size of the new output: the dense one is the reference": trace(C, D).sqrt()
        / trace(C, W_new).sqrt(),
        "C^(1/2) is a matrix root, not the roots of the entries": (C.abs().sqrt() @ D).norm()
        / (C.abs().sqrt() @ W).norm(),
    }
    for message, wrong in mistakes.items():
        expect(not close(value, wrong, 1e-6), message)
    expect(
        not any(close(value, (root @ D).norm() / (root @ W).norm(), 1e-6) for root in (torch.linalg.cholesky(C),)),
        "that takes L for the root: C = L L^T, and ||R D||_F needs R^T R = C; better, take no root at all",
    )
    whole = (D.mT @ C @ D).sum(), (W.mT @ C @ W).sum()
    expect(
        not close(value, (whole[0] / whole[1]).abs().sqrt(), 1e-6),
        "the trace of D^T C D is asked for, not the sum of all its entries",
    )
    expect(close(value, target, 1e-6), "that is not ||X (W - W_new)||_F / ||X W||_F")
    few = X[:3]  # fewer tokens than dims
    value = float(answer(function, few.mT @ few / 3, W, W_new))
    right = float((few @ D).norm() / (few @ W).norm())
    expect(abs(value - right) < 1e-6, "C may be singular: use tr(D^T C D), which takes no root of C and no inverse")
    blind = torch.cat([X[:, :3], 0 * X[:, 3:]], 1)  # the last three inputs are always 0: what meets them costs nothing
    value = float(answer(function, blind.mT @ blind, W, W + (torch.arange(6) >= 3).double()[:, None]))
    expect(
        value < 1e-12,
        f"an input that is always 0 makes no error, yours is {value:.1g}: a damped C is another C; take tr(D^T C D)",
    )
    small = answer(function, C, W, W.clone())
    expect(abs(float(small)) < 1e-7, "the error of an unchanged matrix must be 0")
    passed("the activations can be thrown away, C is enough.")


def whitened_pair(function: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Exercise 02.3: `function(C, weight, k)` for a `weight` (out, in) of torch and the Gram matrix C of its inputs.

    The answer is a pair (out, k), (k, in) whose product has the least output error of all matrices of rank k.

    Raises:
        NotYet: a wrong answer; names the wrong triangle, a missing un-whitening, an SVD that does not see C.
    """
    n, m, k = 7, 5, 2
    X = _inputs(80, n, 6)
    weight = torch.randn(n, m, generator=torch.Generator().manual_seed(7), dtype=torch.float64).mT.contiguous()
    C = X.mT @ X / len(X)
    pair = answer(function, C, weight, k)
    expect(
        isinstance(pair, tuple | list) and len(pair) == 2,
        "return two factors: B of shape (out, k) and A of shape (k, in)",
    )
    B, A = pair
    shapes = [tuple(factor.shape) if isinstance(factor, Tensor) else None for factor in pair]
    expect(shapes[0] != (m, min(n, m)), f"B keeps all its columns: truncate to the k = {k} largest singular values")
    expect(shapes != [(n, k), (k, m)], "that is the pair of the transpose, for y = x W: here y = x weight^T")
    expect(shapes != [(k, n), (m, k)], "the factors are in the wrong order: B (out, k) first, it stands to the left")
    expect_tensor(B, (m, k), "B")
    expect_tensor(A, (k, n), "A")
    product = B.double() @ A.double()
    lower = torch.linalg.cholesky(C)

    def truncated(M: Tensor) -> Tensor:
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        return (U[:, :k] * S[:k]) @ Vh[:k]

    def divided(M: Tensor, root: Tensor) -> Tensor:  # M root^-1
        return torch.linalg.solve(root, M, left=False)

    U, S, Vh = torch.linalg.svd(weight @ lower, full_matrices=False)
    whitened = truncated(weight @ lower)
    wrong_triangle = (
        "the wrong triangle: the squared error is the trace of D C D^T = |D L|^2, so L itself stands to the right"
    )
    mistakes = {
        "plain SVD: the truncation does not see C": truncated(weight),
        "L^-1 is missing: that approximates weight L, not weight": whitened,
        wrong_triangle: divided(truncated(weight @ lower.mT), lower.mT),
        "the root and its inverse are of different triangles: whiten and un-whiten with L": divided(whitened, lower.mT),
        "un-whiten with L^-1, not with L again": whitened @ lower,
        "L^-1 is L^T only if L is orthogonal: solve with L": whitened @ lower.mT,
        "the SVD is of weight C: whiten with a root of C": divided(truncated(weight @ C), C),
        "un-whiten with L^-1, not C^-1": divided(whitened, C),
        "the singular values are missing from the product": divided(U[:, :k] @ Vh[:k], lower),
        "the singular values count twice: in one factor only, or their roots in both": divided(
            (U[:, :k] * S[:k] ** 2) @ Vh[:k], lower
        ),
        "those are the smallest singular values: keep the largest": divided((U[:, -k:] * S[-k:]) @ Vh[-k:], lower),
        wrong_triangle + " (L^T is whitened with, L undone)": divided(truncated(weight @ lower.mT), lower),
    }
    for message, wrong in mistakes.items():
        expect(not close(product, wrong, 1e-6), message)
    best = divided(whitened, lower)
    error, least = ((X @ (weight - P).mT).norm() / (X @ weight.mT).norm() for P in (product, best))
    expect(
        close(product, best, 1e-6),
        f"the output error of B A is {error:.3g}; a pair of the same rank reaches {least:.3g}",
    )
    passed("no matrix of that rank has a smaller output error.")


def tightened_pair(function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Exercise 02.4: `function(A, B)` is (A', rest) with A' [I, rest] = A B, so r (m + n - r) numbers are stored.

    Raises:
        NotYet: a wrong answer; names an unchanged A, the inverse in the wrong place, an identity that is stored.
    """
    m, r, n = 7, 3, 8
    generator = torch.Generator().manual_seed(8)
    A = torch.randn(m, r, generator=generator, dtype=torch.float64)
    B = torch.randn(r, n, generator=generator, dtype=torch.float64)
    pair = answer(function, A, B)
    expect(isinstance(pair, tuple | list) and len(pair) == 2, "return two factors: A' (m, r) and the rest (r, n - r)")
    new_A, rest = pair
    expect(
        not (isinstance(rest, Tensor) and tuple(rest.shape) == (r, n)),
        "the second factor still has n columns: its first r are the identity, which need not be stored",
    )
    expect(
        not (isinstance(rest, Tensor) and tuple(rest.shape) == (r, r) and n != 2 * r),
        "return the last n - r columns of B', not its first r",
    )
    expect_tensor(new_A, (m, r), "A'")
    expect_tensor(rest, (r, n - r), "the rest")
    block, tail = B[:, :r], B[:, r:]
    inverse = torch.linalg.inv(block)
    product = new_A @ torch.cat([torch.eye(r, dtype=new_A.dtype), rest.to(new_A)], dim=1)
    if not close(product.double(), A @ B, 1e-7):
        expect(
            not close(new_A.double(), A),
            "A is unchanged: what you divide B by on the left must multiply A on the right",
        )
        expect(
            not close(new_A.double(), A @ inverse, 1e-7),
            "A takes the block M = B[:, :r] itself, B its inverse: A B = (A M)(M^-1 B)",
        )
        expect(not close(rest.double(), tail, 1e-7), "B is unchanged: multiply it by the inverse of its block")
        expect(
            not close(rest.double(), block @ tail, 1e-7),
            "the rest is multiplied by the block: it takes the inverse",
        )
        expect(
            not close(rest.double()[:, :r], (tail[:, :r] @ inverse), 1e-7),
            "the inverse of the block belongs on the left: M^-1 B",
        )
        expect(
            not close(rest.double(), block.mT @ tail, 1e-7),
            "the inverse of the block is not its transpose",
        )
        expect_close(product, A @ B, "A' [I, rest] is not A B", 1e-7)
    passed("the same product with r^2 numbers less; below full rank that is always fewer than the whole matrix holds.")
