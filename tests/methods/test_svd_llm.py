"""SVD-LLM against the errors it promises, the paper's route, and a principal component analysis of the outputs."""

import pytest
import torch
from torch.testing import assert_close

from modegpt.errors import ModegptError
from modegpt.methods import svd_llm
from modegpt.methods.low_rank import block_linears, ordered_factors
from modegpt.methods.svd_llm import whitened_factors

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = 200
SHAPES = [(12, 12), (20, 9), (9, 20)]


@pytest.fixture(params=SHAPES, ids=str)
def weight(request, randn):
    return randn(*request.param)


@pytest.fixture
def x(weight, randn):
    """Correlated inputs, (tokens, in)."""
    n = weight.shape[1]
    return randn(TOKENS, n) @ (torch.eye(n) + 0.5 * randn(n, n))


def gram(x):
    return x.mT @ x / len(x)


def cut(factors, rank):
    left, right = factors
    return left[:, :rank] @ right[:rank]


def output_error(x, weight, other):
    """E||W x - W' x||^2."""
    return (x @ weight.mT - x @ other.mT).square().sum() / len(x)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_what_is_cut_off_the_whitened_matrix_is_the_error_of_the_outputs(x, weight, rank):
    root = torch.linalg.cholesky(gram(x))
    found = output_error(x, weight, cut(whitened_factors(weight, gram(x)), rank))
    assert_close(found, torch.linalg.svdvals(weight @ root)[rank:].square().sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_product_is_that_of_the_paper_with_its_inverse(x, weight, rank):
    root = torch.linalg.cholesky(gram(x))
    u, s, vt = torch.linalg.svd(weight @ root, full_matrices=False)
    truncated = (u[:, :rank] * s[:rank]) @ torch.linalg.solve(root.mT, vt[:rank].mT).mT
    assert_close(cut(whitened_factors(weight, gram(x)), rank), truncated, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_it_keeps_the_principal_components_of_the_outputs(x, weight, rank):
    """A route without any root of the inputs' Gram matrix."""
    components = torch.linalg.eigh(gram(x @ weight.mT)).eigenvectors.flip(1)[:, :rank]
    assert_close(
        cut(whitened_factors(weight, gram(x)), rank), components @ components.mT @ weight, rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_its_outputs_are_closer_than_plain_svd_and_than_any_neighbour(x, weight, rank, randn):
    left, right = (f[:, :rank] if i == 0 else f[:rank] for i, f in enumerate(whitened_factors(weight, gram(x))))
    least = output_error(x, weight, left @ right)
    assert least < 0.99 * output_error(x, weight, cut(ordered_factors(weight, weight), rank))
    for step in (1e-3, 1e-1, 10.0):
        for _ in range(20):
            other = (left + step * randn(*left.shape)) @ (right + step * randn(*right.shape))
            assert output_error(x, weight, other) > least


def test_fewer_tokens_than_inputs_lose_nothing_on_those_tokens(x, weight):
    few = x[:3]
    factors = whitened_factors(weight, gram(few))
    for rank in (3, 5):
        assert_close(few @ cut(factors, rank).mT, few @ weight.mT, rtol=1e-7, atol=1e-7)


def test_a_gram_matrix_with_nan_is_refused(x, weight):
    x[0, 0] = torch.nan
    with pytest.raises(ModegptError, match="NaN or inf"):
        whitened_factors(weight, gram(x))


@torch.no_grad()
def inputs_of(model, **batch):
    """What every block linear of the model sees, (tokens, in), by hooks of this test's own."""
    seen = {}
    hooks = [
        linear.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0].flatten(0, -2)}))
        for name, linear in block_linears(model).items()
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_every_linear_is_whitened_by_its_own_inputs(dense, tokens):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    factors = svd_llm.measure(dense, tokens, batch_size=4)
    assert (factors.method, factors.tokens) == ("svd-llm", tokens.numel())
    inputs = inputs_of(dense, input_ids=tokens)
    assert list(factors) == list(inputs) == list(block_linears(dense))
    for name, linear in block_linears(dense).items():
        wanted = whitened_factors(linear.weight.detach(), gram(inputs[name].double()))
        assert {factor.dtype for factor in factors[name]} == {torch.float32}
        assert_close(cut(factors[name], 9), cut(wanted, 9).float(), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(dense, tokens, side):
    room = (10, 0) if side == "left" else (0, 10)
    padded, mask = (torch.nn.functional.pad(t, room, value=v) for t, v in ((tokens, 5), (torch.ones_like(tokens), 0)))
    alone = svd_llm.measure(dense, tokens)
    together = svd_llm.measure(dense, {"input_ids": padded, "attention_mask": mask})
    assert together.tokens == alone.tokens == tokens.numel()
    for name in alone:
        assert_close(cut(together[name], 9), cut(alone[name], 9), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_on_the_calibration_data_the_first_layer_errs_less_than_with_plain_svd(dense, tokens):
    inputs, factors = inputs_of(dense, input_ids=tokens), svd_llm.measure(dense, tokens)
    for name, linear in block_linears(dense).items():
        x, weight = inputs[name].double(), linear.weight.double()
        plain = ordered_factors(weight, weight)
        for rank in (2, 9, 20):
            assert output_error(x, weight, cut(factors[name], rank).double()) < output_error(
                x, weight, cut(plain, rank)
            )


def test_few_tokens_are_warned_of_in_the_report(dense, tokens):
    few, enough = svd_llm.measure(dense, tokens), svd_llm.measure(dense, tokens.repeat(4, 1))
    assert svd_llm.compress(dense, enough, 0.4)[1].warnings == []
    _, report = svd_llm.compress(dense, few, 0.4)
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("240 calibration tokens hardly determine the Gram matrix of 80 inputs")
    assert (report.method, report.tokens) == ("svd-llm", 240)
    assert report.seconds.keys() == {"calibrate", "decompose", "build"}
