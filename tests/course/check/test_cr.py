import pytest
import torch

from modegpt.course.check import NotYet
from modegpt.course.check import cr as check
from modegpt.decompose import cr_select


def unfinished(*_):
    raise NotImplementedError


@pytest.mark.parametrize(
    "each", [check.norm_scores, check.keep_pairs, check.softmax_error, check.best_swap, check.best_pair]
)
def test_unfinished_functions_are_told_so(each):
    with pytest.raises(NotYet, match="no solution yet"):
        each(unfinished)


def rejected(each, wrong, message):
    with pytest.raises(NotYet, match=message):
        each(wrong)


def powers(C, W_Q, W_K):
    return ((C @ W_Q) * W_Q).sum(-2), ((C @ W_K) * W_K).sum(-2)


def scores(C, W_Q, W_K):
    q, k = powers(C, W_Q, W_K)
    return (q * k).sqrt().sum(0)


def scores_from_roots(C, W_Q, W_K):
    def root(gram):
        values, vectors = torch.linalg.eigh(gram)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT

    key = root(W_K.T @ C @ W_K).norm(dim=0)
    return sum(root(W.T @ C @ W).norm(dim=0) * key for W in W_Q)


def test_every_right_score_passes(capsys):
    check.norm_scores(scores)
    check.norm_scores(scores_from_roots)
    check.norm_scores(lambda *given: scores(*given).float())
    assert "Right" in capsys.readouterr().out


def of_powers(combine):
    return lambda *given: combine(*powers(*given))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (of_powers(lambda q, k: (q * k).sum(0)), "without the square root"),
        (of_powers(lambda q, k: (q * k).sqrt().prod(0)), "multiplied"),
        (of_powers(lambda q, k: (q * k).sqrt().mean(0)), "mean over the group"),
        (of_powers(lambda q, k: (q.sum(0) * k).sqrt()), "summed before the root"),
        (of_powers(lambda q, k: q.sqrt().sum(0)), "only the queries"),
        (of_powers(lambda q, k: k.sqrt()), "only the keys"),
        (of_powers(lambda q, k: (q * k).sqrt()[0]), "first query head"),
        (of_powers(lambda q, k: (q * k).sqrt()), "shape"),
        (lambda C, W_Q, W_K: scores(torch.eye(len(C)).double(), W_Q, W_K), "weight norms"),
        (lambda C, W_Q, W_K: ((W_Q.mT @ C @ W_Q).norm(dim=1) * (W_K.T @ C @ W_K).norm(dim=0)).sum(0), "column norms"),
        (lambda C, W_Q, W_K: scores(C, W_Q, W_K).flip(0), "not right"),
        (lambda C, W_Q, W_K: None, "returns nothing"),
    ],
)
def test_wrong_scores_are_rejected(wrong, message):
    rejected(check.norm_scores, wrong, message)


def by_scores(make, descending=True):
    """Pairs in the right layout, chosen by scores made of the powers q (group, d) and k (d,)."""

    def keep(C_Q, C_K, rank):
        values = make(C_Q.diagonal(dim1=-2, dim2=-1), C_K.diagonal())
        even = 2 * values.topk(rank // 2, largest=descending).indices.sort().values
        return torch.stack([even, even + 1], -1).flatten()

    return keep


def folded(power):
    return power.unflatten(-1, (-1, 2)).sum(-1)


def joint(q, k):
    return (folded(q) * folded(k)).sqrt()


right_pairs = by_scores(lambda q, k: joint(q, k).sum(0))


def halves(C_Q, C_K, rank):
    return cr_select(C_Q[None], C_K[None], rank)[0]


def scored_as_halves(q, k):
    return (q.unflatten(-1, (2, -1)).sum(-2) * k.unflatten(-1, (2, -1)).sum(-2)).sqrt().sum(0)


def unsorted(C_Q, C_K, rank):
    even = 2 * joint(C_Q.diagonal(dim1=-2, dim2=-1), C_K.diagonal()).sum(0).topk(rank // 2).indices
    return torch.stack([even, even + 1], -1).flatten()


def test_every_right_selection_passes(capsys):
    check.keep_pairs(right_pairs)
    check.keep_pairs(lambda *given: right_pairs(*given).int())
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (halves, "as in Hugging Face"),
        (unsorted, "wrong order"),
        (lambda *given: right_pairs(*given).view(-1, 2).T.flatten(), "wrong order"),
        (lambda *given: right_pairs(*given).flip(0), "wrong order"),
        (
            lambda C_Q, C_K, rank: cr_select(C_Q[None], C_K[None], rank, rotary=False)[0],
            "single dims",
        ),
        (lambda C_Q, C_K, rank: torch.arange(1, rank + 1), "no partner"),
        (lambda C_Q, C_K, rank: right_pairs(C_Q, C_K, min(2 * rank, len(C_K))), "rank"),
        (lambda C_Q, C_K, rank: right_pairs(C_Q, C_K, rank)[: rank // 2], "shape"),
        (by_scores(lambda q, k: joint(q, k).sum(0), descending=False), "smallest"),
        (by_scores(lambda q, k: joint(q, k).log().sum(0)), "multiplied"),
        (by_scores(lambda q, k: joint(q, k).square().sum(0)), "there is no root"),
        (by_scores(lambda q, k: joint(q, k).square().sum(0).sqrt()), "summed before the root"),
        (by_scores(lambda q, k: folded((q * k).sqrt().sum(0))), "before the root"),
        (by_scores(lambda q, k: (q * k).sqrt().sum(0)[::2]), "even dims alone"),
        (by_scores(lambda q, k: folded(k)), "keys alone"),
        (by_scores(lambda q, k: folded(q).sqrt().sum(0)), "queries alone"),
        (by_scores(lambda q, k: joint(q, k)[0]), "first query head"),
        (by_scores(scored_as_halves), "scored by the dims i and"),
        (lambda *given: right_pairs(*given).double(), "integers"),
        (lambda *given: right_pairs(*given).tolist(), "a tensor"),
    ],
)
def test_wrong_selections_are_rejected(wrong, message):
    rejected(check.keep_pairs, wrong, message)


def gone(kept, d):
    return torch.tensor([dim for dim in range(d) if dim not in kept.tolist()])


def of_block(combine, center=lambda C_K, m: C_K - torch.outer(m, m)):
    """An error made of C_Q (group, D, D) and the (centered) C_K (D, D) of the dropped dims D."""

    def error(C_Q, C_K, mean_key, kept):
        dims = gone(kept, len(C_K))
        return combine(C_Q[:, dims][:, :, dims], center(C_K, mean_key)[dims][:, dims])

    return error


right_error = of_block(lambda q, k: (q * k).sum())


def kept_block(C_Q, C_K, mean_key, kept):
    return right_error(C_Q, C_K, mean_key, gone(kept, len(C_K)))


def total_minus_kept(C_Q, C_K, mean_key, kept):
    return right_error(C_Q, C_K, mean_key, kept[:0]) - kept_block(C_Q, C_K, mean_key, kept)


def test_every_right_error_passes(capsys):
    check.softmax_error(right_error)
    check.softmax_error(lambda *given: right_error(*given).item())
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (of_block(lambda q, k: (q * k).sum(), lambda C_K, m: C_K), "not centered"),
        (of_block(lambda q, k: (q * k).sum(), lambda C_K, m: C_K + torch.outer(m, m)), "added"),
        (of_block(lambda q, k: (q * k).diagonal(dim1=-2, dim2=-1).sum()), "diagonal"),
        (of_block(lambda q, k: q.sum() * k.sum()), "product of two sums"),
        (of_block(lambda q, k: (q * k).sum() / len(q)), "mean over the group"),
        (of_block(lambda q, k: (q[0] * k).sum()), "first query head"),
        (
            of_block(lambda q, k: (q.diagonal(dim1=-2, dim2=-1) * k.diagonal()).sqrt().sum(-1).square().sum()),
            "bound",
        ),
        (kept_block, "kept dims"),
        (total_minus_kept, "cross terms"),
        (lambda *given: right_error(*given).sqrt(), "not right"),
        (of_block(lambda q, k: (q * k).sum((1, 2))), "shape"),
    ],
)
def test_wrong_errors_are_rejected(wrong, message):
    rejected(check.softmax_error, wrong, message)


def swap(P, dropped, pick=torch.argmin, own=1.0, cross=2.0, both=2.0):
    r, diagonal = P @ dropped.double(), P.diagonal()
    change = (own * diagonal + cross * r)[:, None] + (own * diagonal - cross * r)[None] - both * P
    out = dropped[:, None] | ~dropped[None]
    at = int(pick(change.masked_fill(out, float("inf") if pick is torch.argmin else -float("inf"))))
    a, b = divmod(at, len(P))
    return a, b, change[a, b].item()


def told(tell):
    """The right swap, told with another change."""

    def answer(P, dropped):
        a, b, change = swap(P, dropped)
        return tell(a, b, change, P, dropped.double())

    return answer


def diagonal_only(P, dropped):
    powers = P.diagonal()
    a = int(powers.masked_fill(dropped, float("inf")).argmin())
    b = int(powers.masked_fill(~dropped, -float("inf")).argmax())
    return a, b, (powers[a] - powers[b]).item()


def best_separately(P, dropped):
    r, diagonal = P @ dropped.double(), P.diagonal()
    a = int((diagonal + 2 * r).masked_fill(dropped, float("inf")).argmin())
    b = int((diagonal - 2 * r).masked_fill(~dropped, float("inf")).argmin())
    return a, b, (diagonal[a] + 2 * r[a] + diagonal[b] - 2 * r[b] - 2 * P[a, b]).item()


def test_every_right_swap_passes(capsys):
    check.best_swap(swap)
    check.best_swap(lambda P, dropped: list(map(torch.tensor, swap(P, dropped))))
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda P, dropped: swap(P, dropped, both=0.0), "- 2 P_ab is missing"),
        (lambda P, dropped: swap(P, dropped, both=1.0), "not - P_ab"),
        (lambda P, dropped: swap(P, dropped, cross=1.0), "2 r_a"),
        (diagonal_only, "only the diagonal"),
        (lambda P, dropped: swap(P, dropped, pick=torch.argmax), "worst swap"),
        (best_separately, "better swap"),
        (told(lambda a, b, change, *_: (a, b, -change)), "sign"),
        (told(lambda a, b, change, P, x: (a, b, change + x @ P @ x)), "E after the swap"),
        (told(lambda a, b, change, P, x: (a, b, change - 2 * P[b, b])), "its sign is plus"),
        (told(lambda a, b, change, *_: (b, a, change)), "exchanged"),
        (told(lambda a, b, change, *_: (b, b, change)), "dropped already"),
        (told(lambda a, b, change, *_: (a, a, change)), "still kept"),
        (told(lambda a, b, change, *_: (a, b, 0.0)), "not right for the swap"),
        (lambda P, dropped: (0, 1), "three things"),
        (lambda P, dropped: (None, 1, 2.0), "integers"),
    ],
)
def test_wrong_swaps_are_rejected(wrong, message):
    rejected(check.best_swap, wrong, message)


# 04.5


def upper(gram):
    return torch.linalg.cholesky(gram).mT


def symmetric(gram):
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.sqrt() @ vectors.mT


def pair(C_Q, C_K, rank, root=upper, keep=None, powers=(0.5, 0.5), undo=True, middle=None):
    R_Q, R_K = root(C_Q), root(C_K)
    U, S, Vh = torch.linalg.svd(R_Q @ R_K.mT if middle is None else middle(R_Q, R_K))
    keep = slice(rank) if keep is None else slice(len(S) - rank, len(S))
    M_Q, M_K = U[:, keep] * S[keep] ** powers[0], Vh[keep].mT * S[keep] ** powers[1]
    return (torch.linalg.solve(R_Q, M_Q), torch.linalg.solve(R_K, M_K)) if undo else (M_Q, M_K)


def without_inverse_of_the_queries(C_Q, C_K, rank):
    R_Q, R_K = upper(C_Q), upper(C_K)
    V = torch.linalg.svd(R_Q @ R_K.mT).Vh[:rank].mT
    return R_K.mT @ V, torch.linalg.solve(R_K, V)


def dims(C_Q, C_K, rank):
    kept = torch.eye(len(C_Q), dtype=C_Q.dtype)[:, cr_select(C_Q[None, None], C_K[None], rank, rotary=False)[0]]
    return kept, kept


def loudest(C, rank):
    return (torch.linalg.eigh(C).eigenvectors[:, -rank:],) * 2


@pytest.mark.parametrize(
    "right",
    [
        pair,
        lambda *given: pair(*given, root=symmetric),
        lambda *given: pair(*given, powers=(1, 0)),
        without_inverse_of_the_queries,
    ],
)
def test_the_best_pair_passes_by_any_root_and_scale(right):
    check.best_pair(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dims, "largest norm scores"),
        (lambda C_Q, C_K, k: loudest(C_Q, k), "what the keys can hear"),
        (lambda C_Q, C_K, k: loudest(C_K, k), "depends on the queries"),
        (lambda *given: pair(*given, root=lambda C: C), "C_Q and C_K themselves"),
        (lambda *given: pair(*given, root=torch.linalg.cholesky), "takes L for the root"),
        (lambda *given: pair(*given, middle=torch.matmul), "R_Q R_K\\^T"),
        (lambda *given: pair(*given, undo=False), "never undone"),
        (lambda *given: pair(*given, powers=(0, 0)), "missing"),
        (lambda *given: pair(*given, powers=(1, 1)), "both factors"),
        (lambda *given: pair(*given, keep="last"), "smallest"),
        (lambda *given: tuple(M.mT for M in pair(*given)), "shape"),
        (lambda *given: pair(*given)[0], "two matrices"),
        (lambda *given: [M.float() for M in pair(*given)], "it is torch.float32"),
        (lambda C_Q, C_K, k: pair(C_Q.diagonal().diag(), C_K.diagonal().diag(), k), "off by|norm scores"),
    ],
)
def test_wrong_pairs_of_one_svd_are_named(wrong, message):
    rejected(check.best_pair, wrong, message)
