"""Every check of the notebook on the MLP passes the right answers and names the mistake in the wrong ones."""

import pytest
import torch

from modegpt.course.check import NotYet
from modegpt.course.check import nystrom as check
from modegpt.decompose import leverage_scores
from modegpt.decompose import nystrom as package_nystrom


def eye_like(matrix):
    return torch.eye(len(matrix), dtype=matrix.dtype)


def unfinished(*arguments):
    raise NotImplementedError


@pytest.mark.parametrize(
    "exercise",
    [check.leverage_few_tokens, check.refit_with_intercept, check.errors_of_all_cuts, check.cheapest_channel],
)
def test_an_unfinished_function_is_not_yet_right(exercise):
    with pytest.raises(NotYet, match="has no solution yet"):
        exercise(unfinished)
    with pytest.raises(NotYet):
        exercise(lambda *arguments: None)


def dual(A, amount):
    return (A * torch.linalg.solve(A @ A.mT + amount * eye_like(A), A)).sum(0)


def total_ridge(A, ridge):
    return ridge * A.square().mean(0).mean() * len(A)  # T lambda


@pytest.mark.parametrize(
    "right",
    [
        lambda A, ridge: dual(A, total_ridge(A, ridge)),
        lambda A, ridge: (
            torch.linalg.solve_triangular(
                torch.linalg.cholesky(A @ A.mT + total_ridge(A, ridge) * eye_like(A)), A, upper=False
            )
            .square()
            .sum(0)
        ),
    ],
)
def test_leverage_accepts_every_right_route(right, capsys):
    check.leverage_few_tokens(right)
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda A, ridge: dual(A, total_ridge(A, ridge) / len(A)), "multiply lambda by T"),
        (lambda A, ridge: dual(A, ridge * len(A)), "ridge is relative"),
        (lambda A, ridge: dual(A, total_ridge(A, ridge) * A.shape[1]), "trace"),
        (lambda A, ridge: dual(A, ridge * (A @ A.mT).diagonal().mean()), "over the n channels"),
        (lambda A, ridge: leverage_scores(A.mT @ A / len(A), ridge), "n x n matrix was made"),
        (lambda A, ridge: 1 - leverage_scores(A.mT @ A / len(A), ridge), "1 - s"),
        (lambda A, ridge: A.square().mean(0), "activation energy"),
        (lambda A, ridge: leverage_scores(A @ A.mT / len(A), ridge), "scores of the tokens"),
        (lambda A, ridge: dual(A, 0.0), "ridge is missing"),
        (lambda A, ridge: dual(A, len(A) * total_ridge(A, ridge)), "1 / T is missing"),
        (lambda A, ridge: dual(A, ridge * (A.mT @ A).mean()), "all entries of C"),
        (lambda A, ridge: len(A) * dual(A, total_ridge(A, ridge)), "T times too large"),
        (lambda A, ridge: dual(A, total_ridge(A, ridge)).argsort(), "differ"),
    ],
)
def test_leverage_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.leverage_few_tokens(wrong)


def centered(C, mean):
    return C - torch.outer(mean, mean)


def fit(C, W, J):
    return torch.linalg.solve(C[J][:, J], C[J] @ W)


def right_refit(C, mean, W, bias, J):
    V = fit(centered(C, mean), W, J)
    return V, bias + mean @ W - mean[J] @ V


def test_refit_accepts_the_right_answer_and_a_list():
    check.refit_with_intercept(right_refit)
    check.refit_with_intercept(lambda *arguments: list(right_refit(*arguments)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda C, m, W, b, J: (W[J], b), "re-solve is missing"),
        (lambda C, m, W, b, J: (V := fit(C, W, J), b + m @ W - m[J] @ V), "center the Gram matrix"),
        (lambda C, m, W, b, J: (fit(C - m @ m, W, J), b), "torch.outer"),
        (lambda C, m, W, b, J: (fit(C + torch.outer(m, m), W, J), b), "the sign: the outer product"),
        (lambda C, m, W, b, J: (torch.linalg.solve(centered(C, m)[J][:, J], C[J] @ W), b), "both need"),
        (lambda C, m, W, b, J: (torch.linalg.solve(C[J][:, J], centered(C, m)[J] @ W), b), "both need"),
        (lambda C, m, W, b, J: right_refit(C.sub_(torch.outer(m, m)), 0 * m, W, b, J), "its argument C in place"),
        (lambda C, m, W, b, J: (fit(centered(C, m), W, J), b), "still b_D"),
        (lambda C, m, W, b, J: (V := fit(centered(C, m), W, J), m @ W - m[J] @ V), "forgot the old bias"),
        (lambda C, m, W, b, J: (V := fit(centered(C, m), W, J), b - m @ W + m[J] @ V), "sign"),
        (lambda C, m, W, b, J: (torch.linalg.pinv(C)[J][:, J] @ C[J] @ W, b), "block J, J first"),
        (lambda C, m, W, b, J: (fit(centered(C, m), W, J).mT, b), "shape"),
        (lambda C, m, W, b, J: (C[J][:, J] @ C[J] @ W, b), "not the least-squares optimum"),
        (lambda C, m, W, b, J: fit(centered(C, m), W, J), "two things"),
        (lambda C, m, W, b, J: (C[J] @ torch.linalg.inv(C[J][:, J]) @ W, b), "stops with RuntimeError"),
    ],
)
def test_refit_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.refit_with_intercept(wrong)


def cuts(C, W, order, power=2):
    L, V = torch.linalg.cholesky(C[order][:, order]), W[order]
    return torch.stack([(L[k:, k:].mT @ V[k:]).norm() ** power for k in range(len(C))])


def cuts_by_schur(C, W, order):
    errors = [(W.mT @ C @ W).trace()]
    for k in range(1, len(C)):
        J = order[:k]
        errors.append((W.mT @ (C - C[:, J] @ torch.linalg.solve(C[J][:, J], C[J])) @ W).trace())
    return torch.stack(errors)


@pytest.mark.parametrize("right", [cuts, cuts_by_schur, lambda C, W, order: from_the_end(rows_of(C, W, order))])
def test_cuts_accept_every_right_route(right):
    check.errors_of_all_cuts(right)


def rows_of(C, W, order, upper=False):
    return (torch.linalg.cholesky(C[order][:, order], upper=upper).mT @ W[order]).square().sum(1)


def from_the_end(rows):
    return rows.flip(0).cumsum(0).flip(0)


def selected(C, W, order):
    return torch.stack([(W[d].mT @ C[d][:, d] @ W[d]).trace() for d in (order[k:] for k in range(len(C)))])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (selected, "without the re-solve"),
        (lambda C, W, order: cuts(C, W, order, 1), "square roots"),
        (lambda C, W, order: cuts(C, W, torch.arange(len(C))), "order is ignored"),
        (lambda C, W, order: cuts(C, W, order.argsort()), "argsort"),
        (lambda C, W, order: cuts(C, W, order).flip(0), "reversed"),
        (lambda C, W, order: torch.cat([cuts(C, W, order)[1:], torch.zeros(1).double()]), "off by one"),
        (lambda C, W, order: cuts(C, W, order.flip(0)), "end of the order"),
        (lambda C, W, order: cuts(C, W[order.argsort()], order), "W_D is not"),
        (lambda C, W, order: cuts(C, W[order], torch.arange(len(C))), "C is not"),
        (lambda C, W, order: rows_of(C, W, order), "what each channel adds"),
        (lambda C, W, order: rows_of(C, W, order).cumsum(0), "adds up what is kept"),
        (lambda C, W, order: rows_of(C, W, order).cumsum(0) - rows_of(C, W, order), "adds up what is kept"),
        (lambda C, W, order: from_the_end(rows_of(C, W, order, upper=True)), "wrong side"),
        (lambda C, W, order: cuts(C, W, order) / cuts(C, W, order)[0], "relative"),
        (lambda C, W, order: cuts(C, W, order)[1:], "shape"),
        (lambda C, W, order: cuts(C + eye_like(C), W, order), "differ"),
    ],
)
def test_cuts_name_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.errors_of_all_cuts(wrong)


def costs(C, W):
    return W.square().sum(1) / torch.linalg.inv(C).diagonal()


def cheapest(values):
    return values.argmin().item(), values.min().item()


def test_cheapest_accepts_numbers_and_tensors():
    check.cheapest_channel(lambda C, W: cheapest(costs(C, W)))
    check.cheapest_channel(lambda C, W: (costs(C, W).argmin(), costs(C, W).min()))
    check.cheapest_channel(lambda C, W: cheapest(costs(C.float(), W.float())))


OTHER_SCORES = (
    lambda C, W: W.norm(dim=1),
    lambda C, W: W.square().sum(1) * C.diagonal(),
    lambda C, W: W.norm(dim=1) / torch.linalg.inv(C).diagonal(),
    lambda C, W: 1 / torch.linalg.inv(C).diagonal(),
    lambda C, W: C.diagonal(),
)


def chosen_by(score):
    """The right cost, of a channel that another score chose."""
    return lambda C, W: ((j := score(C, W).argmin().item()), costs(C, W)[j].item())


def inverse_power(C):
    return torch.linalg.inv(C).diagonal()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda C, W: cheapest(W.square().sum(1) * C.diagonal()), "without the re-solve"),
        (lambda C, W: cheapest(W.square().sum(1) * inverse_power(C)), "dividing"),
        (lambda C, W: cheapest(W.norm(dim=1) / inverse_power(C)), "square of the row norm"),
        (lambda C, W: cheapest(1 / inverse_power(C)), "ignores what the channel is worth"),
        (lambda C, W: cheapest(W.square().sum(1)), "not the weights alone"),
        (lambda C, W: (costs(C, W).argmax().item(), costs(C, W).max().item()), "dearest"),
        (lambda C, W: (costs(C, W).argmin().item(), costs(C, W).min().sqrt().item()), "root"),
        (lambda C, W: (costs(C, W).min().item(), costs(C, W).argmin().item()), "turned around"),
        (lambda C, W: costs(C, W).argmin().item(), "two things"),
        (lambda C, W: (float(costs(C, W).argmin()), costs(C, W).min().item()), "an int"),
        *((chosen_by(score), "is not the cheapest") for score in OTHER_SCORES),
        (lambda C, W: (costs(C, W).argmin(), costs(C, W)), "one channel and one cost"),
        (lambda C, W: (costs(C, W).argmin().item(), 0.0), "its cost is"),
    ],
)
def test_cheapest_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.cheapest_channel(wrong)


def test_the_cheapest_channel_is_the_one_whose_removal_by_the_package_costs_least():
    A = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    C, W = A.mT @ A / 50, torch.ones(6, 2, dtype=torch.float64)
    keep, V, _ = package_nystrom(C, W, 5, ridge=1e-6)  # equal rows: tiny lambda orders by 1 / [C^-1]_jj
    dropped, cost = cheapest(costs(C, W))
    assert dropped not in keep.tolist()
    assert (A @ W - A[:, keep] @ V).square().sum() / 50 == pytest.approx(cost, rel=1e-6)
