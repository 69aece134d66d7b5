"""Type I against the textbook: least squares on the activations themselves."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from modegpt.decompose import leverage_scores, nystrom, nystrom_residuals
from modegpt.errors import ModegptError

TOKENS, CHANNELS, WIDTH = 200, 12, 5


@pytest.fixture
def activations(randn):
    """Channels of unequal power that can largely be told from each other."""
    return randn(TOKENS, 7) @ randn(7, CHANNELS) * torch.linspace(0.3, 2, CHANNELS) + 0.3 * randn(TOKENS, CHANNELS)


@pytest.fixture
def down(randn):
    return randn(CHANNELS, WIDTH)


@pytest.fixture
def error(activations, down):
    """E||a W_down - a_J W'||^2."""
    return lambda keep, new: ((activations @ down - activations[:, keep] @ new) ** 2).sum().item() / TOKENS


def eigen_leverage(matrix, ridge):
    """diag(C (C + lambda I)^-1) from the eigenvectors of C."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors**2 * (values / (values + ridge * matrix.diagonal().mean()))).sum(1)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 10.0])
def test_leverage_scores_equal_the_eigenvector_formula(activations, gram, ridge):
    scores = leverage_scores(gram(activations), ridge)
    assert_close(scores, eigen_leverage(gram(activations), ridge), rtol=1e-10, atol=1e-12)


def test_leverage_scores_sum_to_the_effective_dimension(activations, gram):
    matrix = gram(activations)
    inverse = torch.linalg.inv(matrix + matrix.diagonal().mean() * torch.eye(CHANNELS))
    assert_close(leverage_scores(matrix).sum(), torch.trace(matrix @ inverse))


def test_leverage_scores_do_not_depend_on_the_scale(activations, gram):
    assert_close(leverage_scores(gram(1e6 * activations)), leverage_scores(gram(activations)))


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_channels_of_largest_leverage_are_kept_in_ascending_order(activations, gram, down, ridge):
    expected = eigen_leverage(gram(activations), ridge).argsort(descending=True)
    for rank in range(1, CHANNELS + 1):
        keep, _, _ = nystrom(gram(activations), down, rank, ridge)
        assert keep.tolist() == sorted(expected[:rank].tolist())


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_new_weights_are_the_least_squares_solution_on_the_activations(activations, gram, down, rank):
    keep, new, _ = nystrom(gram(activations), down, rank)
    expected = torch.linalg.lstsq(activations[:, keep], activations @ down).solution
    assert_close(new, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_new_weights_equal_the_formula_of_the_paper(activations, gram, down, rank):
    matrix = gram(activations)
    keep, new, _ = nystrom(matrix, down, rank)
    assert_close(new, torch.linalg.pinv(matrix[keep][:, keep]) @ matrix[keep] @ down, rtol=1e-7, atol=1e-8)


def test_the_residual_is_orthogonal_to_the_kept_activations(activations, gram, down):
    keep, new, _ = nystrom(gram(activations), down, 6)
    residual = activations @ down - activations[:, keep] @ new
    gradient = activations[:, keep].T @ residual / (activations.norm() * residual.norm())
    assert gradient.abs().max() < 1e-8


def test_no_other_weights_for_the_same_channels_do_better(activations, gram, down, error, randn):
    keep, new, _ = nystrom(gram(activations), down, 6)
    for step in (1e-3, 1e-2, 1.0):
        for _ in range(20):
            change = step * randn(6, WIDTH)
            assert error(keep, new) < min(error(keep, new + change), error(keep, new - change))


def test_keeping_everything_changes_no_bit(activations, gram, down):
    keep, new, _ = nystrom(gram(activations), down, CHANNELS)
    assert keep.tolist() == list(range(CHANNELS))
    assert torch.equal(new, down)


@pytest.mark.parametrize("rank", [3, 6, 10])
def test_the_error_is_that_of_the_schur_complement_and_within_the_bound_of_the_paper(
    activations, gram, down, error, rank
):
    matrix = gram(activations)
    keep, new, _ = nystrom(matrix, down, rank)
    missed = matrix - matrix[:, keep] @ torch.linalg.solve(matrix[keep][:, keep], matrix[keep])
    assert error(keep, new) == pytest.approx(torch.trace(down.T @ missed @ down).item(), rel=1e-8)

    # ||W_D||^2 ||C^-1|| E_Nys(C)^2: spectral norms, and the Frobenius norm of what Nystrom misses of C
    spectral = torch.linalg.matrix_norm
    bound = spectral(down, 2) ** 2 * spectral(torch.linalg.inv(matrix), 2) * missed.norm() ** 2
    assert error(keep, new) <= bound


def test_the_error_shrinks_with_every_channel_kept(activations, gram, down, error):
    errors = [error(*nystrom(gram(activations), down, rank)[:2]) for rank in range(1, CHANNELS + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_better_than_the_strongest_channels_without_a_new_solve(activations, gram, down, error):
    matrix = gram(activations)
    for rank in (4, 6, 8, 10):
        strongest = matrix.diagonal().argsort(descending=True)[:rank]
        assert error(*nystrom(matrix, down, rank)[:2]) < 0.5 * error(strongest, down[strongest])


def test_weights_of_another_dtype_come_back_in_that_of_the_gram_matrix(activations, gram, down):
    _, new, _ = nystrom(gram(activations), down.float(), 6)
    _, same, _ = nystrom(gram(activations), down.float().double(), 6)
    assert torch.equal(new, same)


def test_fewer_tokens_than_channels_lose_nothing_and_report_the_damping(activations, gram, down):
    few = activations[:6]
    keep, new, damping = nystrom(gram(few), down, 8)
    assert_close(few[:, keep] @ new, few @ down, rtol=1e-6, atol=1e-6)
    assert damping.shape == ()
    assert damping.item() == 1e-10
    # products in float32 leave noise of either sign where the zero eigenvalues were
    noisy = (few.float().T @ few.float()).double() / 6
    keep, new, damping = nystrom(noisy, down, 10)
    assert 1e-9 < damping <= 1e-3
    assert_close(few[:, keep] @ new, few @ down, rtol=1e-2, atol=1e-2)


def test_dead_channels_go_first_and_leave_no_trace(activations, gram, down):
    dead = torch.tensor([0, 5, 11])
    live = torch.tensor([c for c in range(CHANNELS) if c not in dead])
    activations[:, dead] = 0
    matrix = gram(activations)
    assert_close(leverage_scores(matrix)[dead], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)
    keep, new, _ = nystrom(matrix, down, 9)
    assert keep.tolist() == live.tolist()
    assert_close(new, down[live])
    # with room to spare, the dead ones that stay do no harm
    keep, new, _ = nystrom(matrix, down, 11)
    assert set(live.tolist()) < set(keep.tolist())
    assert_close(activations[:, keep] @ new, activations @ down)


def test_channels_that_never_fire_at_all_are_simply_selected(down):
    zero = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    assert leverage_scores(zero).tolist() == [0] * CHANNELS
    keep, new, _ = nystrom(zero, down, 4)
    assert len(set(keep.tolist())) == 4
    assert_close(new, down[keep])


def test_nan_is_refused(activations, gram, down):
    activations[3, 4] = torch.nan
    with pytest.raises(ModegptError, match="NaN or inf"):
        nystrom(gram(activations), down, 6)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("soon", [2], indirect=True)
@pytest.mark.parametrize("ridge", [0.0, -1.0, torch.nan, torch.inf])
def test_a_ridge_that_is_not_positive_is_refused(activations, gram, ridge):
    with pytest.raises(ModegptError, match="ridge of the leverage scores must be a positive number"):
        leverage_scores(gram(activations[:6]), ridge)


class GatedMLP(nn.Module):
    """act(x W_gate) * (x W_up) W_down, as in Llama; its `select` is the compressed form."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, channels, bias=False) for _ in range(2))
        self.down = nn.Linear(channels, width, bias=False)

    def activations(self, x):
        return nn.functional.silu(self.gate(x)) * self.up(x)

    def forward(self, x):
        return self.down(self.activations(x))

    def select(self, keep, down):
        small = type(self)(WIDTH, len(keep)).double()
        for name in self.selected:
            small.get_parameter(name).data = self.get_parameter(name)[keep]
        small.down.weight.data = down.T
        if self.down.bias is not None:
            small.down.bias = self.down.bias
        return small

    selected = ("gate.weight", "up.weight")


class PlainMLP(GatedMLP):
    """act(x W_up + b_up) W_down + b_down, as in OPT."""

    def __init__(self, width: int, channels: int):
        nn.Module.__init__(self)
        self.up, self.down = nn.Linear(width, channels), nn.Linear(channels, width)

    def activations(self, x):
        return torch.relu(self.up(x))

    selected = ("up.weight", "up.bias")


@torch.no_grad()
@pytest.mark.parametrize("kind", [GatedMLP, PlainMLP])
def test_selecting_columns_commutes_with_the_nonlinearity_and_the_module_is_the_best_approximation(kind, randn, gram):
    torch.manual_seed(0)
    mlp, x = kind(WIDTH, CHANNELS).double(), randn(TOKENS, WIDTH)
    a = mlp.activations(x)
    keep, down, _ = nystrom(gram(a), mlp.down.weight.T, 7)
    small = mlp.select(keep, down)
    assert_close(small.activations(x), a[:, keep])
    wanted = a @ mlp.down.weight.T
    best = a[:, keep] @ torch.linalg.lstsq(a[:, keep], wanted).solution
    assert_close(small(x) - mlp(x), best - wanted, rtol=1e-6, atol=1e-8)
    everything = mlp.select(*nystrom(gram(a), mlp.down.weight.T, CHANNELS)[:2])
    assert torch.equal(everything.down.weight, mlp.down.weight)
    assert_close(everything(x), mlp(x))


def test_the_residuals_are_the_errors_of_every_rank(activations, down, gram, error):
    found = nystrom_residuals(gram(activations), down)
    assert found.shape == (CHANNELS + 1,) and found[-1] == 0
    for rank in range(1, CHANNELS + 1):
        keep, new, _ = nystrom(gram(activations), down, rank)
        assert_close(found[rank].item(), error(keep, new), rtol=1e-6, atol=1e-9)
    assert_close(found[0].item(), ((activations @ down) ** 2).sum().item() / TOKENS, rtol=1e-8, atol=0)
