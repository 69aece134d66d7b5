import pytest
import torch

from modegpt.allocate import LayerShape, ranks_for
from modegpt.course.check import NotYet
from modegpt.course.check import modules as check


def unfinished(*_):
    raise NotImplementedError


@pytest.mark.parametrize("each", [check.channels_left, check.rotate, check.fold_value_bias, check.whiten])
def test_unfinished_functions_are_told_so(each):
    with pytest.raises(NotYet, match="no solution yet"):
        each(unfinished)


def rejected(each, wrong, message):
    with pytest.raises(NotYet, match=message):
        each(wrong)


def left(ratio, width, heads, kv_heads, head_dim, channels, gated):
    attention = 2 * head_dim * width * (heads + kv_heads)
    per_channel = (3 if gated else 2) * width
    return channels - ratio * (attention + per_channel * channels) / per_channel


def test_the_right_channels_pass(capsys):
    check.channels_left(left)
    check.channels_left(lambda *sizes: torch.tensor(left(*sizes), dtype=torch.float64))
    assert "Right" in capsys.readouterr().out


def test_the_right_channels_are_what_the_package_allocates():
    shape = LayerShape(64, 64, 1536, 576 * 12, 576 * 12, 3 * 576)
    (ranks,) = ranks_for(torch.tensor([0.25]), shape, 1, ("mlp",))
    assert abs(ranks.mlp - left(0.25, 576, 9, 3, 64, 1536, True)) <= 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r, w, h, k, d, c, g: left(r, w, h, k, d, c, False), "gate"),
        (lambda r, w, h, k, d, c, g: left(r, w, h, k, d, c, True), "gate"),
        (lambda r, w, h, k, d, c, g: left(r, w, h, h, d, c, g), "kv_heads heads, not as many"),
        (lambda r, w, h, k, d, c, g: left(r, w, k, k, d, c, g), "all heads"),
        (lambda r, w, h, k, d, c, g: left(r, w, h, k, w // h, c, g), "head_dim"),
        (lambda r, w, h, k, d, c, g: (1 - r) * c, "MLP alone"),
        (lambda r, w, h, k, d, c, g: c - left(r, w, h, k, d, c, g), "removed"),
        (lambda r, w, h, k, d, c, g: c - r * (d * (h + k) / (3 if g else 2) + c), "counts one of them"),
        (lambda r, w, h, k, d, c, g: (1 - r) * (2 * d * (h + k) / (3 if g else 2) + c), "keep theirs"),
        (lambda *sizes: round(left(*sizes)), "do not round"),
        (lambda *sizes: 1.0, "not right"),
        (lambda *sizes: "many", "one number"),
        (lambda r, *sizes: left(1 - r, *sizes), "share that goes"),
        (lambda *sizes: left(*sizes) / sizes[5], "a share of the channels"),
        (lambda *sizes: float("nan"), "nan"),
    ],
)
def test_wrong_channels_are_rejected(wrong, message):
    rejected(check.channels_left, wrong, message)


def turn(x, angles):
    low, high = x.chunk(2, -1)
    z = torch.complex(low, high) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def test_the_right_rotation_passes(capsys):
    check.rotate(turn)
    check.rotate(lambda x, angles: turn(x.float(), angles.float()))
    assert "Right" in capsys.readouterr().out


def interleaved(x, angles):
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * angles)
    return torch.view_as_real(z).flatten(-2)


def read_interleaved(x, angles):
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * angles)
    return torch.cat([z.real, z.imag], -1)


def written_interleaved(x, angles):
    return torch.stack(turn(x, angles).chunk(2, -1), -1).flatten(-2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (interleaved, r"\(2i, 2i \+ 1\)"),
        (read_interleaved, "read the pairs"),
        (written_interleaved, "order is not"),
        (lambda x, angles: turn(x, -angles), "minus the angle"),
        (lambda x, angles: turn(x, angles).roll(x.shape[-1] // 2, -1), "swapped"),
        (lambda x, angles: torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles), "complex"),
        (lambda x, angles: turn(x, angles[:1].expand_as(angles)), "not right"),
        (lambda x, angles: turn(x, angles)[:, :2], "shape"),
    ],
)
def test_wrong_rotations_are_rejected(wrong, message):
    rejected(check.rotate, wrong, message)


def folded(b_V, W_O, b_O):
    return b_O + torch.einsum("kd,kgdw->w", b_V, W_O)


def in_place(b_V, W_O, b_O):
    b_O += torch.einsum("kd,kgdw->w", b_V, W_O)
    return b_O


def wrong_neighbours(b_V, W_O, b_O):
    return b_O + torch.einsum("hd,hdw->w", b_V.repeat(W_O.shape[1], 1), W_O.flatten(0, 1))


def test_the_right_fold_passes(capsys):
    check.fold_value_bias(folded)
    check.fold_value_bias(lambda b_V, W_O, b_O: b_O + (b_V[:, None, None] @ W_O).sum((0, 1, 2)))
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b_V, W_O, b_O: folded(b_V, W_O, 0 * b_O), "b_O is lost"),
        (lambda b_V, W_O, b_O: folded(-b_V, W_O, b_O), "sign"),
        (lambda b_V, W_O, b_O: folded(b_V, W_O[:, :1], b_O), "first query head"),
        (lambda b_V, W_O, b_O: folded(b_V, W_O.mean(1, keepdim=True), b_O), "average over a group"),
        (lambda b_V, W_O, b_O: folded(b_V, W_O, b_O * W_O.shape[0] * W_O.shape[1]) / W_O[..., 0, 0].numel(), "heads"),
        (lambda b_V, W_O, b_O: b_O, "not right"),
        (wrong_neighbours, "repeat_interleave"),
        (in_place, "its argument b_O in place"),
    ],
)
def test_wrong_folds_are_rejected(wrong, message):
    rejected(check.fold_value_bias, wrong, message)


def whitened(W_V, W_O, G):
    lower = torch.linalg.cholesky(G)
    return torch.linalg.solve_triangular(lower, W_V.mT, upper=False).mT, lower.mT @ W_O


def with_m(make, output=lambda M, W_O: torch.linalg.inv(M) @ W_O):
    def rewrite(W_V, W_O, G):
        M = make(G)
        return W_V @ M, output(M, W_O)

    return rewrite


def symmetric(G, power=-0.5):
    values, vectors = torch.linalg.eigh(G)
    return vectors * values**power @ vectors.mT


def cholesky_inverse(G):
    return torch.linalg.inv(torch.linalg.cholesky(G)).mT


def test_every_right_whitening_passes(capsys):
    check.whiten(whitened)
    check.whiten(with_m(symmetric))
    check.whiten(with_m(lambda G: -symmetric(G).flip(-1)))  # any rotation of it
    assert "Right" in capsys.readouterr().out


def orthonormal_columns(W_V, W_O, _G):
    basis, triangle = torch.linalg.qr(W_V)
    return basis, triangle @ W_O


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (with_m(cholesky_inverse, lambda M, W_O: W_O), "unchanged"),
        (with_m(cholesky_inverse, lambda M, W_O: M @ W_O), "both got M"),
        (with_m(cholesky_inverse, lambda M, W_O: M.mT @ W_O), "M\\^T"),
        (with_m(cholesky_inverse, lambda M, W_O: torch.linalg.inv(M).mT @ W_O), "inverse transposed"),
        (with_m(torch.linalg.inv), "overshoots"),
        (with_m(lambda G: torch.linalg.inv(torch.linalg.cholesky(G))), "L\\^-T"),
        (with_m(lambda G: symmetric(G, 0.5)), "wrong matrix"),
        (with_m(lambda G: torch.linalg.cholesky(G)), "wrong matrix"),
        (with_m(lambda G: G.diagonal().rsqrt().diag()), "still correlated: use all of G"),
        (with_m(lambda G: torch.eye(len(G), dtype=G.dtype)), "nothing changed|unchanged"),
        (with_m(lambda G: 2 * symmetric(G)), "power is not one"),
        (with_m(lambda G: torch.linalg.eigh(G).eigenvectors), "power is not one"),
        (with_m(lambda G: G.sqrt().nan_to_num(0.3)), "identity"),
        (orthonormal_columns, "orthonormal"),
        (lambda W_V, W_O, G: W_V, "two tensors"),
    ],
)
def test_wrong_whitenings_are_rejected(wrong, message):
    rejected(check.whiten, wrong, message)
