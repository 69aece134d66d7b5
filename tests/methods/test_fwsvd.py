"""FWSVD against numbers worked out by hand, and against gradients that this file takes itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForSequenceClassification, OPTForSequenceClassification

from modegpt.errors import ModegptError
from modegpt.methods import fwsvd
from modegpt.methods.fwsvd import batched_fisher_rows, fisher_rows, fisher_weighted_factors, samples_with_labels
from modegpt.methods.low_rank import block_linears, ordered_factors

pytestmark = pytest.mark.usefixtures("one_thread")


class Toy(nn.Module):
    """y = W x with W the identity, and the loss ||y - labels||^2 / 2, whose gradient is (y - labels) x^T."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.linear.weight)

    def forward(self, x, labels):
        return SimpleNamespace(loss=(self.linear(x) - labels).square().sum() / 2)


# x = (1, 3) and labels (-1, 2): residual (2, 1), gradient [[2, 6], [1, 3]], squares [[4, 36], [1, 9]]
FIRST = {"x": torch.tensor([[1.0, 3.0]]), "labels": torch.tensor([[-1.0, 2.0]])}
# x = (2, -1) and labels (1, 0): residual (1, -1), gradient [[2, -1], [-2, 1]], squares [[4, 1], [4, 1]]
SECOND = {"x": torch.tensor([[2.0, -1.0]]), "labels": torch.tensor([[1.0, 0.0]])}
TOGETHER = {key: torch.cat([FIRST[key], SECOND[key]]) for key in FIRST}


def cut(factors, rank):
    left, right = factors
    return left[:, :rank] @ right[:rank]


def test_fisher_rows_are_the_numbers_worked_out_by_hand():
    """A feature is a column of (out, in): 4 + 1 and 36 + 9 for the first sample, 4 + 4 and 1 + 1 for the next."""
    assert fisher_rows(Toy(), ["linear"], [FIRST])["linear"].tolist() == [5, 45]
    assert fisher_rows(Toy(), ["linear"], [SECOND])["linear"].tolist() == [8, 2]
    rows = fisher_rows(Toy(), ["linear"], iter([FIRST, SECOND]))["linear"]
    assert rows.tolist() == [13, 47]
    assert rows.dtype == torch.float64


def test_the_square_of_the_batch_is_another_number():
    """The gradients' sum is [[4, 5], [-1, 4]], its squares [[16, 25], [1, 16]]."""
    assert fisher_rows(Toy(), ["linear"], [TOGETHER])["linear"].tolist() == [17, 41]


class Classifier(nn.Module):
    """The toy for texts of two tokens, its loss the mean over the samples, as Hugging Face's classifiers have it."""

    def __init__(self):
        super().__init__()
        self.linear = Toy().linear

    def forward(self, x, labels):
        return SimpleNamespace(loss=(self.linear(x).sum(1) - labels).square().sum(1).div(2).mean())


def test_many_samples_in_one_pass_are_squared_one_by_one():
    """The toy's two samples once more, their inputs split between two tokens."""
    x = torch.stack([TOGETHER["x"] - 2, torch.full((2, 2), 2.0)], dim=1)
    rows = batched_fisher_rows(Classifier(), ["linear"], [{"x": x, "labels": TOGETHER["labels"]}])["linear"]
    one_by_one = [{"x": x[i : i + 1], "labels": TOGETHER["labels"][i : i + 1]} for i in range(2)]
    wanted = fisher_rows(Classifier(), ["linear"], one_by_one)["linear"]
    assert_close(rows, wanted)
    assert_close(rows, torch.tensor([13.0, 47.0], dtype=torch.float64))


def test_another_loss_can_be_given():
    doubled = fisher_rows(Toy(), ["linear"], [FIRST], lambda model, inputs: 2 * model(**inputs).loss)
    assert doubled["linear"].tolist() == [4 * 5, 4 * 45]


def test_small_gradients_do_not_vanish_when_they_are_squared():
    tiny = fisher_rows(Toy().bfloat16(), ["linear"], [{k: v.bfloat16() for k, v in FIRST.items()}], scaled(2.0**-80))
    assert_close(tiny["linear"], torch.tensor([5.0, 45.0], dtype=torch.float64) * 2.0**-160, rtol=1e-6, atol=0)


def scaled(factor):
    return lambda model, inputs: factor * model(**inputs).loss


def manual_rows(model, losses):
    """Sum of the squared gradients of these losses, by torch.autograd.grad."""
    linears = block_linears(model)
    rows = {name: torch.zeros(linear.in_features, dtype=torch.float64) for name, linear in linears.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss, [linear.weight for linear in linears.values()])
        for name, gradient in zip(rows, gradients, strict=True):
            rows[name] += gradient.double().square().sum(0)
    return rows


def assert_same_rows(found, wanted, rtol=1e-3):
    assert list(found) == list(wanted)
    for name in wanted:
        assert_close(found[name], wanted[name], rtol=rtol, atol=1e-6 * float(wanted[name].mean()))


def rows_of(model, data):
    return fisher_rows(model, block_linears(model), samples_with_labels(model, data))


def ahead(model, ids, by):
    """Mean loss of predicting the token `by` places ahead."""
    return cross_entropy(model(ids).logits[:, :-by].flatten(0, 1), ids[:, by:].flatten())


def test_each_sample_is_squared_alone_and_predicts_its_next_token(dense, tokens):
    assert_same_rows(rows_of(dense, tokens), manual_rows(dense, (ahead(dense, ids[None], 1) for ids in tokens)))


@pytest.fixture
def squared(monkeypatch):
    """The Fisher rows that `measure` used."""
    rows, original = [], fwsvd.fisher_rows
    monkeypatch.setattr(fwsvd, "fisher_rows", lambda *given: rows.append(original(*given)) or rows[-1])
    return rows


def test_measure_weights_every_linear_by_its_own_rows(dense, tokens, squared):
    factors = fwsvd.measure(dense, tokens, batch_size=4)
    assert (factors.method, factors.tokens) == ("fwsvd", tokens.numel())
    assert_same_rows(squared[0], manual_rows(dense, (ahead(dense, ids[None], 1) for ids in tokens)))
    for name, linear in block_linears(dense).items():
        root = squared[0][name].sqrt()
        fires = root > 0  # some ReLU channels of the OPT never do
        u, s, vt = torch.linalg.svd(root[:, None] * linear.weight.detach().double().mT, full_matrices=False)
        wanted = (u[fires, :9] * s[:9] / root[fires, None]) @ vt[:9]  # the paper's A B = (D^-1 U S) V^T, (in, out)
        assert {factor.dtype for factor in factors[name]} == {torch.float32}
        assert_close(cut(factors[name], 9)[:, fires], wanted.mT.float(), rtol=1e-4, atol=1e-4)


def test_the_known_fault_predicts_the_token_after_next(dense, tokens, squared):
    factors = fwsvd.measure(dense, tokens, batch_size=4, shifted=True)
    assert factors.method == "fwsvd-shifted"
    assert_same_rows(squared[0], manual_rows(dense, (ahead(dense, ids[None], 2) for ids in tokens)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_is_predicted_nor_predicts(dense, tokens, side):
    lengths = [40, 31, 17, 2, 1, 0]  # the last two have nothing to predict
    alone = manual_rows(dense, (ahead(dense, ids[None, :n], 1) for ids, n in zip(tokens[:4], lengths, strict=False)))
    room = [(40 - n, 0) if side == "left" else (0, 40 - n) for n in lengths]
    ids = torch.stack([pad(ids[:n], gap, value=5) for ids, n, gap in zip(tokens, lengths, room, strict=True)])
    mask = torch.stack([pad(torch.ones(n, dtype=torch.int64), gap) for n, gap in zip(lengths, room, strict=True)])
    assert_same_rows(rows_of(dense, {"input_ids": ids, "attention_mask": mask}), alone)


def test_tokens_on_both_sides_of_a_hole_do_not_predict_each_other(dense):
    ids, mask = torch.tensor([[9, 8, 7, 6, 5]]), torch.tensor([[1, 1, 0, 1, 1]])
    (sample,) = samples_with_labels(dense, {"input_ids": ids, "attention_mask": mask})
    assert sample["labels"].tolist() == [[-100, 8, -100, -100, 5]]


def test_without_any_token_to_predict_it_says_so(dense, tokens):
    with pytest.raises(ModegptError, match="no sample has a label to learn from"):
        fwsvd.measure(dense, tokens[:, :1])
    mask = torch.zeros_like(tokens)
    mask[:, 3] = 1
    with pytest.raises(ModegptError, match="no sample has a label to learn from"):
        fwsvd.measure(dense, {"input_ids": tokens, "attention_mask": mask})
    with pytest.raises(ModegptError, match="no sample has a label to learn from"):
        fisher_rows(dense, block_linears(dense), [])


def test_inputs_without_labels_are_refused(dense, tokens):
    with pytest.raises(ModegptError, match="sample 1: the model made no loss, its inputs need labels"):
        fisher_rows(
            dense, block_linears(dense), [{"input_ids": tokens[:1], "labels": tokens[:1]}, {"input_ids": tokens[:1]}]
        )


def test_a_loss_or_a_gradient_that_is_nan_or_inf_is_refused():
    wrong = FIRST | {"labels": torch.full((1, 2), torch.nan)}
    with pytest.raises(ModegptError, match="sample 1: its loss is NaN or inf"):
        fisher_rows(Toy(), ["linear"], [FIRST, wrong])
    with pytest.raises(ModegptError, match="linear: its gradients hold NaN or inf"):
        fisher_rows(Toy(), ["linear"], [FIRST], lambda model, _: (model.linear.weight - torch.eye(2)).sqrt().sum())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_also_when_it_fails(dense, tokens, fails):
    dense.train()
    dense.get_decoder().layers[1].eval()
    frozen = dense.get_input_embeddings().weight.requires_grad_(False)
    for parameter in dense.parameters():
        parameter.grad = torch.full_like(parameter, 3) if parameter is not frozen else None
    modes = [module.training for module in dense.modules()]
    learns = [parameter.requires_grad for parameter in dense.parameters()]
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}

    with torch.no_grad():
        if fails:
            with pytest.raises(ModegptError):
                fisher_rows(dense, block_linears(dense), [{"input_ids": tokens[:1]}])
        else:
            fwsvd.measure(dense, tokens[:2])
    assert [module.training for module in dense.modules()] == modes
    assert [parameter.requires_grad for parameter in dense.parameters()] == learns
    for parameter in dense.parameters():
        assert parameter.grad is None if parameter is frozen else (parameter.grad == 3).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())
    before = dense.get_parameter(next(iter(block_linears(dense))) + ".weight").grad
    dense(tokens[:1], labels=tokens[:1]).loss.backward()
    assert not (before == 3).all()  # no hook is left that would take the gradient away


def test_dropout_is_off_and_old_gradients_do_not_count(tiny_opt, tokens):
    model = tiny_opt(dropout=0.5)
    wanted = rows_of(model, tokens[:2])
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert_same_rows(rows_of(model, tokens[:2]), wanted, rtol=1e-6)


def test_only_one_gradient_of_a_linear_is_held_at_a_time(dense, tokens):
    """Otherwise the gradients of all linears, as large as the model, would pile up."""
    held, linears = [], block_linears(dense)

    def count(_weight):
        held.append(sum(linear.weight.grad is not None for linear in linears.values()))

    for linear in linears.values():  # called before the hook that takes the gradient away
        linear.weight.register_post_accumulate_grad_hook(count)
    rows_of(dense, tokens[:3])
    assert held == [1] * 3 * len(linears)


def test_a_classifier_is_squared_sample_by_sample(tiny_llama, tokens):
    config = LlamaConfig(**tiny_llama().config.to_dict() | {"num_labels": 3})
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    name, labels = "model.layers.1.mlp.up_proj", torch.tensor([0, 1, 2, 0, 1, 2])
    samples = [{"input_ids": tokens[i : i + 1], "labels": labels[i : i + 1]} for i in range(6)]
    found = fisher_rows(model, [name], samples)
    weight, wanted = model.get_submodule(name).weight, 0
    for ids, label in zip(tokens, labels, strict=True):
        (gradient,) = torch.autograd.grad(cross_entropy(model(ids[None]).logits, label[None]), weight)
        wanted = wanted + gradient.double().square().sum(0)
    assert_close(found[name], wanted, rtol=1e-3, atol=0)


@pytest.fixture(params=["llama", "opt"])
def exact_classifier(request, tiny_llama, tiny_opt):
    """A model with a head for three labels in float64; 0 is padding."""
    kind, dense = (
        (LlamaForSequenceClassification, tiny_llama())
        if request.param == "llama"
        else (OPTForSequenceClassification, tiny_opt(dropout=0.0))
    )
    config = type(dense.config)(**dense.config.to_dict() | {"num_labels": 3, "pad_token_id": 0, "dtype": "float64"})
    torch.manual_seed(0)
    return kind(config).double().eval()


@pytest.fixture
def padded(tokens):
    """Six texts of other lengths, padded on the right."""
    lengths = torch.tensor([40, 31, 17, 9, 2, 1])
    mask = torch.arange(40) < lengths[:, None]
    ids = tokens[:6].clamp(min=1) * mask
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}


def exact_rows(model, samples, labels):
    """For every block linear, from gradients of torch.autograd.grad, in float64."""
    losses = (cross_entropy(model(ids[None]).logits, label[None]) for ids, label in zip(samples, labels, strict=True))
    return manual_rows(model, losses)


def test_a_padded_batch_is_squared_text_by_text_in_float64(exact_classifier, padded):
    texts = [ids[ids > 0] for ids in padded["input_ids"]]
    assert [len(text) for text in texts] == [40, 31, 17, 9, 2, 1]
    linears = block_linears(exact_classifier)
    for labels in (padded["labels"], padded["labels"].roll(1)):  # right and wrong ones
        found = batched_fisher_rows(exact_classifier, linears, [padded | {"labels": labels}])
        assert_same_rows(found, exact_rows(exact_classifier, texts, labels), rtol=1e-9)


def test_a_batch_squared_is_the_gradient_of_its_mean_loss(exact_classifier, padded):
    """The other estimator, to which padding is nothing either."""
    texts = [ids[ids > 0] for ids in padded["input_ids"]]
    loss = sum(
        cross_entropy(exact_classifier(ids[None]).logits, label[None])
        for ids, label in zip(texts, padded["labels"], strict=True)
    )
    wanted = manual_rows(exact_classifier, [loss / len(texts)])
    found = fisher_rows(exact_classifier, block_linears(exact_classifier), [padded])
    assert_same_rows(found, wanted, rtol=1e-9)
    alone = batched_fisher_rows(exact_classifier, block_linears(exact_classifier), [padded])
    assert all(not torch.allclose(36 * wanted[name], row, rtol=0.01) for name, row in alone.items())


@pytest.mark.parametrize("shape", [(12, 12), (20, 9), (9, 20)], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_no_other_matrix_of_that_rank_has_a_smaller_weighted_error(randn, shape, rank):
    weight, rows = randn(*shape), torch.exp(3 * randn(shape[1]))

    def error(other):
        return ((weight - other) * rows.sqrt()).norm()

    left, right = fisher_weighted_factors(weight, rows)
    left, right = left[:, :rank], right[:rank]
    least = error(left @ right)
    assert_close(least, torch.linalg.svdvals(weight * rows.sqrt())[rank:].norm())
    assert least < 0.99 * error(cut(ordered_factors(weight, weight), rank))
    for step in (1e-3, 1e-1, 10.0):
        for _ in range(20):
            other = (left + step * randn(*left.shape)) @ (right + step * randn(*right.shape))
            assert error(other) > least


def test_rows_without_information_are_finite_and_decide_nothing(randn):
    weight, rows = randn(12, 9), torch.exp(randn(9))
    rows[[2, 5, 6]] = 0
    left, right = fisher_weighted_factors(weight, rows)
    assert torch.isfinite(left).all()
    assert torch.isfinite(right).all()
    seen = rows > 0
    alone = fisher_weighted_factors(weight[:, seen], rows[seen])
    for rank in (2, 4):
        assert_close(cut((left, right), rank)[:, seen], cut(alone, rank), rtol=1e-6, atol=1e-6)


def test_rank_that_the_informed_rows_do_not_need_goes_to_the_others(randn):
    """Three rows carry information; of the rest, ranks four and five keep the best."""
    weight, rows = randn(12, 9), torch.zeros(9, dtype=torch.float64)
    rows[:3] = torch.exp(randn(3))
    product = cut(fisher_weighted_factors(weight, rows), 5)
    assert_close(product[:, :3], weight[:, :3], rtol=1e-6, atol=1e-6)
    outside = weight[:, 3:] - weight[:, :3] @ torch.linalg.lstsq(weight[:, :3], weight[:, 3:]).solution
    assert_close((product - weight).norm(), torch.linalg.svdvals(outside)[2:].norm(), rtol=1e-6, atol=1e-6)


def test_a_linear_that_the_loss_does_not_reach_falls_back_to_plain_svd(randn):
    weight = randn(12, 9)
    found = fisher_weighted_factors(weight, torch.zeros(9, dtype=torch.float64))
    assert_close(cut(found, 4), cut(ordered_factors(weight, weight), 4))


@pytest.mark.parametrize("shifted", [False, True])
def test_compressed_it_reports_its_name_tokens_and_seconds(dense, tokens, shifted):
    small, report = fwsvd.compress(dense, fwsvd.measure(dense, tokens, shifted=shifted), 0.4)
    assert (report.method, report.tokens) == ("fwsvd-shifted" if shifted else "fwsvd", 240)
    assert report.seconds.keys() == {"calibrate", "decompose", "build"}
    assert torch.isfinite(small(tokens).logits).all()
