"""SVD-LLM's and SliceGPT's steps against formulations that share nothing with ours: numpy, other eigenproblems."""

import numpy as np
import pytest
import torch

from modegpt.methods import slicegpt
from modegpt.methods.svd_llm import whitened_factors


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


def test_slicegpt_slices_a_weight_as_a_projection_of_its_inputs_does(tiny_llama, tokens):
    """q_proj of layer 1: W diag(scale) P on the space of the k leading left singular vectors of the stream, transposed.

    W' = W diag(scale) Q_k, so W' W'^T = W diag(scale) P diag(scale) W^T with P = Q_k Q_k^T, whatever the signs in Q_k.
    """
    dense = tiny_llama().double()
    for layer in dense.model.layers:
        torch.nn.init.uniform_(layer.input_layernorm.weight, 0.5, 2)
    layer = dense.model.layers[1]
    with torch.no_grad():
        stream = dense.model(tokens, output_hidden_states=True).hidden_states[1].flatten(0, 1).numpy()
    weight = (layer.self_attn.q_proj.weight * layer.input_layernorm.weight).detach().numpy()
    sliced, report = slicegpt.compress(dense, slicegpt.measure(dense, tokens), 0.3)
    leading = np.linalg.svd(stream.T)[0][:, : report.settings["sliced_size"]]
    expected = weight @ leading @ leading.T @ weight.T
    found = sliced.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_allclose(found @ found.T, expected, rtol=1e-4, atol=1e-5)
