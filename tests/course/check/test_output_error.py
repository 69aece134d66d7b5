import pytest
import torch

from modegpt.course.check import NotYet
from modegpt.course.check import output_error as check


def rejected(checked, wrong, message):
    with pytest.raises(NotYet, match=message):
        checked(wrong)


def unfinished(*_arguments):
    raise NotImplementedError


@pytest.mark.parametrize(
    "checked", [check.streaming_gram, check.error_from_gram, check.whitened_pair, check.tightened_pair]
)
def test_an_unfinished_function_is_not_yet_right(checked):
    rejected(checked, unfinished, "no solution yet")
    rejected(checked, lambda *_arguments: None, "should|return")


# 02.1


def gram_of(batches, cast=torch.Tensor.double, count=lambda mask: mask.sum(), rows=lambda X, mask: X[mask.bool()]):
    total, tokens = 0, 0
    for X, mask in batches:
        real = cast(rows(X, mask))
        total, tokens = total + real.mT @ real, tokens + count(mask)
    return total / tokens


def everything(X, _mask):
    return X.flatten(0, 1)


def test_a_gram_matrix_in_a_stream_is_accepted():
    check.streaming_gram(gram_of)
    check.streaming_gram(lambda batches: gram_of(batches, rows=lambda X, mask: (X * mask[..., None]).flatten(0, 1)))


def mean_of_means(batches):
    return torch.stack([gram_of([batch]) for batch in batches]).mean(0)


def centered(batches):
    return torch.cov(torch.cat([X.double()[mask.bool()] for X, mask in batches]).mT, correction=0)


def in_place(batches):
    for X, mask in batches:
        X[mask == 0] = 0
    return gram_of(batches)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b: gram_of(b, rows=everything, count=torch.numel), "padding counts"),
        (lambda b: gram_of(b, rows=everything), "padding is in the sum"),
        (lambda b: gram_of(b, count=torch.numel), "divided by all positions"),
        (lambda b: gram_of(b, count=lambda _mask: 1), "number of batches"),
        (lambda b: gram_of(b, count=len), "number of samples"),
        (lambda b: gram_of(b) * sum(mask.sum() for _, mask in b), "that is the sum"),
        (mean_of_means, "mean of batch means"),
        (centered, "not centered"),
        (lambda b: gram_of(b, cast=lambda rows: rows), "overflow"),
        (lambda b: gram_of(b, cast=lambda rows: rows.bfloat16() if rows.dtype == torch.half else rows), "digits"),
        (in_place, "in place"),
        (lambda b: gram_of(b, cast=torch.Tensor.float), "float64"),
        (lambda b: gram_of(b, cast=torch.Tensor.float).double(), "digits"),
        (lambda b: gram_of(b, rows=lambda X, mask: X[mask].flatten(0, -2)), "bool"),
        (lambda b: gram_of(b)[0], "shape"),
    ],
)
def test_a_wrong_gram_matrix_is_rejected(wrong, message):
    rejected(check.streaming_gram, wrong, message)


# 02.2


def trace(C, D):
    return (D.mT @ C @ D).trace()


def test_the_error_from_a_gram_matrix_is_accepted_as_tensor_or_number():
    check.error_from_gram(lambda C, W, V: (trace(C, W - V) / trace(C, W)).sqrt())
    check.error_from_gram(lambda C, W, V: ((trace(C, W - V) / trace(C, W)) ** 0.5).item())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda C, W, V: trace(C, W - V) / trace(C, W), "squared error: take the root"),
        (lambda C, W, V: trace(C, W - V).sqrt(), "divide by the size of the output"),
        (lambda C, W, V: trace(C, W - V), "squared error itself"),
        (lambda C, W, V: (W - V).norm() / W.norm(), "C does not appear"),
        (lambda C, W, V: (C @ (W - V)).norm() / (C @ W).norm(), "used twice"),
        (lambda C, W, V: trace(C, W - V).sqrt() / trace(C, W), "numerator only"),
        (lambda C, W, V: trace(C, W - V).sqrt() / W.norm(), "size of W"),
        (lambda C, W, V: (trace(C, W - V) / trace(C, V)).sqrt(), "new output"),
        (lambda C, W, V: (C.abs().sqrt() @ (W - V)).norm() / (C.abs().sqrt() @ W).norm(), "matrix root"),
        (
            lambda C, W, V: (torch.linalg.cholesky(C) @ (W - V)).norm() / (torch.linalg.cholesky(C) @ W).norm(),
            "takes L",
        ),
        (lambda C, W, V: (upper(C) @ (W - V)).norm() / (upper(C) @ W).norm(), "stops with|singular"),
        (lambda C, W, V: (root(C) @ (W - V)).norm() / (root(C) @ W).norm(), "singular"),
        (lambda C, W, V: (((W - V).mT @ C @ (W - V)).sum() / (W.mT @ C @ W).sum()).abs().sqrt(), "all its entries"),
        (lambda C, W, V: torch.tensor(0.5), "not"),
        (lambda C, W, V: (C @ (W - V)).norm(dim=0), "shape"),
    ],
)
def test_a_wrong_error_is_rejected(wrong, message):
    rejected(check.error_from_gram, wrong, message)


# 02.3


def pair(weighted, k, undo=lambda Vh: Vh):
    U, S, Vh = torch.linalg.svd(weighted, full_matrices=False)
    return U[:, :k], undo(S[:k, None] * Vh[:k])


def upper(C):
    return torch.linalg.cholesky(C).mT


def lower(C):
    return torch.linalg.cholesky(C)


def root(C):
    values, vectors = torch.linalg.eigh(C)
    return vectors * values.sqrt() @ vectors.mT


def over(R):
    """Un-whitening: what multiplies with R^-1 from the right."""
    return lambda Vh: torch.linalg.solve(R, Vh, left=False)


def by_roots(C, W, k):
    U, S, Vh = torch.linalg.svd(W @ lower(C), full_matrices=False)
    return U[:, :k] * S[:k].sqrt(), over(lower(C))(S[:k, None].sqrt() * Vh[:k])


def by_outputs(C, W, k):
    V = torch.linalg.eigh(W @ C @ W.mT).eigenvectors[:, -k:]
    return V, V.mT @ W


def transposed(C, W, k):
    """The lesson's way, on y = x W with W (in, out)."""
    U, S, Vh = torch.linalg.svd(upper(C) @ W.mT, full_matrices=False)
    return torch.linalg.solve(upper(C), U[:, :k] * S[:k]), Vh[:k]


def transposed_back(C, W, k):
    P, Q = transposed(C, W, k)
    return Q.mT, P.mT


@pytest.mark.parametrize(
    "right",
    [
        lambda C, W, k: pair(W @ lower(C), k, over(lower(C))),
        lambda C, W, k: pair(W @ root(C), k, over(root(C))),
        by_roots,
        by_outputs,
        transposed_back,
    ],
)
def test_every_way_to_whiten_is_accepted(right):
    check.whitened_pair(right)


def values_twice(C, W, k):
    U, S, Vh = torch.linalg.svd(W @ lower(C), full_matrices=False)
    return U[:, :k] * S[:k], over(lower(C))(S[:k, None] * Vh[:k])


def values_missing(C, W, k):
    U, _, Vh = torch.linalg.svd(W @ lower(C), full_matrices=False)
    return U[:, :k], over(lower(C))(Vh[:k])


def smallest(C, W, k):
    V = torch.linalg.eigh(W @ C @ W.mT).eigenvectors[:, :k]
    return V, V.mT @ W


def truncated_last(C, W, k):
    """Un-whitens all of it, then truncates what is W again."""
    B, A = pair(W @ lower(C), len(W), over(lower(C)))
    return pair(B @ A, k)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda C, W, k: pair(W, k), "plain SVD"),
        (truncated_last, "plain SVD"),
        (lambda C, W, k: pair(W @ lower(C), k), "L\\^-1 is missing"),
        (lambda C, W, k: pair(W @ upper(C), k, over(upper(C))), "wrong triangle"),
        (lambda C, W, k: pair(W @ lower(C), k, over(upper(C))), "different triangles"),
        (lambda C, W, k: pair(W @ upper(C), k, over(lower(C))), "L\\^T is whitened with"),
        (lambda C, W, k: pair(W @ lower(C), k, lambda A: A @ lower(C)), "not with L again"),
        (lambda C, W, k: pair(W @ lower(C), k, lambda A: A @ upper(C)), "orthogonal"),
        (lambda C, W, k: pair(W @ C, k, over(C)), "SVD is of weight C"),
        (lambda C, W, k: pair(W @ lower(C), k, over(C)), "not C\\^-1"),
        (values_twice, "count twice"),
        (values_missing, "missing from the product"),
        (smallest, "smallest"),
        (transposed, "pair of the transpose"),
        (lambda C, W, k: transposed(C, W.mT, k), "stops with"),
        (lambda C, W, k: by_outputs(C, W, k)[::-1], "wrong order"),
        (lambda C, W, k: by_outputs(C, W, len(W)), "truncate"),
        (lambda C, W, k: W, "two factors"),
        (lambda C, W, k: by_outputs(torch.eye(len(C)).to(C) + C, W, k), "reaches"),
    ],
)
def test_a_wrong_whitening_is_rejected(wrong, message):
    rejected(check.whitened_pair, wrong, message)


# 02.4


def block(A, B):
    return B[:, : A.shape[1]], B[:, A.shape[1] :]


def tightened(A, B):
    M, tail = block(A, B)
    return A @ M, torch.linalg.solve(M, tail)


def test_a_tightened_pair_is_accepted():
    check.tightened_pair(tightened)
    check.tightened_pair(lambda A, B: (A @ block(A, B)[0], torch.linalg.inv(block(A, B)[0]) @ block(A, B)[1]))


def scaled_in_place(A, B):
    new = tightened(A.clone(), B)
    A *= 2
    return new


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda A, B: (A, tightened(A, B)[1]), "A is unchanged"),
        (lambda A, B: (A @ torch.linalg.inv(block(A, B)[0]), tightened(A, B)[1]), "A takes the block M"),
        (lambda A, B: (tightened(A, B)[0], block(A, B)[1]), "B is unchanged"),
        (lambda A, B: (tightened(A, B)[0], block(A, B)[0] @ block(A, B)[1]), "takes the inverse"),
        (lambda A, B: (tightened(A, B)[0], block(A, B)[0].mT @ block(A, B)[1]), "not its transpose"),
        (lambda A, B: (tightened(A, B)[0], torch.linalg.solve(block(A, B)[0], B)), "need not be stored"),
        (lambda A, B: (tightened(A, B)[0], tightened(A, B)[1][:, : A.shape[1]]), "not its first r"),
        (lambda A, B: (2 * tightened(A, B)[0], tightened(A, B)[1]), "is not A B"),
        (lambda A, B: tightened(A.float(), B.float()), "it is torch.float32"),
        (scaled_in_place, "in place"),
        (lambda A, B: tightened(A, B)[0], "two factors"),
    ],
)
def test_a_wrong_tightening_is_rejected(wrong, message):
    rejected(check.tightened_pair, wrong, message)
