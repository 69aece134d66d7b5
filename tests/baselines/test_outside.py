"""SVD-LLM's step against a formulation that shares nothing with ours: numpy, and another eigenproblem."""

import numpy as np
import pytest
import torch

from modegpt.baselines.svd_llm import whitened_factors


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)], ids=str)
def test_svd_llm_solves_the_generalised_eigenproblem(shape):
    """Its right vectors B solve W^T W v = lambda G^-1 v, and W' = W B (B^T G^-1 B)^-1 B^T G^-1."""
    draw = np.random.default_rng(0)
    out, inputs = shape
    weight = draw.standard_normal((out, inputs))
    mixed = draw.standard_normal((500, inputs)) @ draw.standard_normal((inputs, inputs))
    gram = mixed.T @ mixed / 500
    rank = 7

    values, vectors = np.linalg.eig(gram @ weight.T @ weight)
    top = vectors[:, np.argsort(values.real)[::-1][:rank]].real
    inverse = np.linalg.inv(gram)
    expected = weight @ top @ np.linalg.inv(top.T @ inverse @ top) @ top.T @ inverse

    left, right = whitened_factors(torch.tensor(weight), torch.tensor(gram))
    found = (left[:, :rank] @ right[:rank]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)

    def output_error(other):
        return np.square(mixed @ (weight - other).T).sum() / 500

    # what is lost are the small eigenvalues
    assert output_error(found) == pytest.approx(np.sort(values.real)[::-1][rank : min(shape)].sum(), rel=1e-6)
