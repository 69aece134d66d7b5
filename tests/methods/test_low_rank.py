"""Ranks, the swap of linears for pairs, and the model that comes of it."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForSequenceClassification

import modegpt.modeling  # noqa: F401  tells the Auto classes
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.methods import svd
from modegpt.methods.low_rank import LowRankLinear, block_linears, compress, factorize_, rank_for_ratio, rank_for_share
from modegpt.modeling import LowRankLlamaConfig, LowRankLlamaForCausalLM, LowRankOPTConfig, LowRankOPTForCausalLM
from modegpt.report import count_parameters

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 32}
KINDS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "opt": ("opt", {}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
}


@pytest.fixture(params=KINDS)
def dense(request, tiny_llama, tiny_opt):
    family, changes = KINDS[request.param]
    return {"llama": tiny_llama, "opt": tiny_opt}[family](**changes)


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


@pytest.mark.parametrize(
    ("ratio", "m", "n", "rank"),
    [(0.5, 100, 100, 25), (0.9, 100, 100, 5), (0.3, 48, 80, 21), (0.3, 80, 48, 21), (0.99, 10, 10, 1), (0, 48, 80, 0)],
)
def test_the_rank_at_a_ratio_is_the_share_kept_of_break_even_and_zero_means_dense(ratio, m, n, rank):
    assert rank_for_ratio(ratio, m, n) == rank


def test_that_rank_is_the_largest_that_the_budget_pays_for():
    for percent in range(1, 98):
        for m, n in ((576, 576), (1536, 576), (192, 576), (2048, 512)):
            rank = rank_for_ratio(percent / 100, m, n)
            assert rank * (m + n) * 100 <= (100 - percent) * m * n < (rank + 1) * (m + n) * 100


def test_a_share_of_the_full_rank_is_floored():
    assert rank_for_share(0.33, 768, 768) == 253
    assert rank_for_share(0.33, 3072, 768) == 253
    assert rank_for_share(0.001, 48, 48) == 1
    assert rank_for_share(0.7, 100, 10) == 7  # 0.7 * 10 is 6.999...


def test_a_rank_from_break_even_on_is_refused_with_the_break_even_rank():
    assert rank_for_share(383 / 768, 768, 768) == 383
    for share in (0.5, 0.8):
        with pytest.raises(ModegptError, match="of a 768 x 768 matrix saves nothing: break-even is at rank 384"):
            rank_for_share(share, 768, 768)
    with pytest.raises(ModegptError, match="rank 1 of a 2 x 2 matrix saves nothing"):
        rank_for_ratio(0.5, 2, 2)


@pytest.mark.parametrize("share", [-0.1, 0, 1, 33])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ModegptError, match="between 0 and 1"):
        rank_for_share(share, 768, 768)


@pytest.mark.parametrize("ratio", [-0.1, 1, 30])
def test_a_ratio_out_of_range_is_refused(dense, ratio):
    with pytest.raises(ModegptError, match="ratio is the share"):
        compress(dense, svd.measure(dense, None), ratio)


@torch.no_grad()
def test_linears_of_any_module_are_replaced_in_place(randn):
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)).double().eval()
    factors = {"0": (randn(8, 6), randn(6, 6)), "2": (randn(8, 8), randn(8, 8))}
    kept = {name: (left.clone(), right.clone()) for name, (left, right) in factors.items()}
    bias, last = module[0].bias.detach().clone(), module[3]
    assert factorize_(module, factors, lambda m, n: {6: 2, 8: 3}[n]) == {"0": 2, "2": 3}

    x = randn(5, 6)
    hidden = torch.tanh(x @ kept["0"][1][:2].mT @ kept["0"][0][:, :2].mT + bias)
    expected = last(hidden @ kept["2"][1][:3].mT @ kept["2"][0][:, :3].mT)
    assert_close(module(x), expected)
    assert module[3] is last
    assert not module[0].training

    for parameter in module.parameters():  # training the module leaves the factors as they are
        parameter.zero_()
    for name, pair in kept.items():
        assert torch.equal(factors[name][0], pair[0])
        assert torch.equal(factors[name][1], pair[1])


def test_linears_of_rank_zero_stay(randn):
    module = nn.Sequential(nn.Linear(6, 8))
    before = module[0]
    assert factorize_(module, {"0": (randn(8, 6), randn(6, 6))}, lambda m, n: 0) == {"0": 0}
    assert module[0] is before


def test_a_classifier_is_factored_by_the_same_names_and_can_be_trained(tiny_llama, tokens):
    config = LlamaConfig(**tiny_llama().config.to_dict() | {"num_labels": 3})
    model = LlamaForSequenceClassification(config).train()
    model.model.load_state_dict(tiny_llama().model.state_dict())
    factors = svd.measure(tiny_llama(), None)
    factorize_(model, factors, lambda m, n: rank_for_share(0.33, m, n))
    pairs = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    assert len(pairs) == len(factors)
    assert {pair.right.out_features for pair in pairs} == {15, 10}  # 0.33 of 48, and of the 32 outputs of k and v
    model(tokens, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for pair in pairs for parameter in pair.parameters())


@torch.no_grad()
def test_the_model_computes_what_the_products_of_its_factors_say(dense, tokens):
    factors = svd.measure(dense, None)
    small, report = compress(dense, factors, 0.4)
    expected = copy.deepcopy(dense)
    for name, (left, right) in factors.items():
        rank = rank_for_ratio(0.4, len(left), right.shape[1])
        expected.get_submodule(name).weight.copy_(left[:, :rank] @ right[:rank])
        assert report.settings["ranks"][re.sub(r".*layers\.\d+\.", "", name)] == rank
    assert_close(logits(small, tokens), logits(expected, tokens), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(small, tokens), logits(dense, tokens), rtol=1e-2, atol=1e-2)


def test_the_dense_model_stays_as_it_is_and_shares_what_is_not_compressed(dense, tokens):
    before, state = logits(dense, tokens), {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    small, _ = compress(dense, svd.measure(dense, None), 0.4)
    assert torch.equal(logits(dense, tokens), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())
    replaced = {f"{name}.weight" for name in block_linears(dense)}
    shared = {parameter.data_ptr() for name, parameter in dense.named_parameters() if name not in replaced}
    pairs = ("left.weight", "right.weight")
    assert {p.data_ptr() for name, p in small.named_parameters() if not name.endswith(pairs)} == shared
    tied = dense.lm_head.weight is dense.get_input_embeddings().weight
    assert (small.lm_head.weight is small.get_input_embeddings().weight) == tied
    assert small.generation_config is dense.generation_config


@pytest.mark.parametrize("learning", ["nothing", "norms and biases", "weights of q", "everything"])
def test_what_can_be_trained_stays_so_in_both_models(dense, learning):
    for name, parameter in dense.named_parameters():
        chosen = {"norms and biases": parameter.dim() == 1, "weights of q": name.endswith("q_proj.weight")}
        parameter.requires_grad_(chosen.get(learning, learning == "everything"))
    before = {name: parameter.requires_grad for name, parameter in dense.named_parameters()}
    small, _ = compress(dense, svd.measure(dense, None), 0.4)
    assert {name: parameter.requires_grad for name, parameter in dense.named_parameters()} == before
    for name, parameter in small.named_parameters():
        source = re.sub(r"\.(left|right)\.weight$", ".weight", name).replace(".left.bias", ".bias")
        assert parameter.requires_grad == before[source], name


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.8])
def test_the_report_counts_what_is_gone(dense, ratio):
    family = family_of(dense)
    small, report = compress(dense, svd.measure(dense, None), ratio)
    assert report.block_ratio == pytest.approx(ratio, abs=0.04)
    assert report.block_ratio >= ratio
    assert report.block_parameters_before == family.shape(dense).total * len(family.layers(dense))
    gone = report.block_parameters_before - report.block_parameters_after
    assert (
        gone == count_parameters(dense) - count_parameters(small) == report.parameters_before - report.parameters_after
    )
    assert report.seconds.keys() == {"decompose", "build"}
    assert report.peak_memory_bytes > 0
    assert report.method == "svd"


def test_measured_once_it_serves_every_ratio_in_any_order(dense, tokens):
    factors = svd.measure(dense, None)
    first = logits(compress(dense, factors, 0.5)[0], tokens)
    compress(dense, factors, 0.2)
    assert torch.equal(logits(compress(dense, factors, 0.5)[0], tokens), first)


def test_dtype_attention_and_mode_are_kept(tiny_llama, tokens):
    dense = tiny_llama().to(torch.bfloat16)
    dense.set_attn_implementation("eager")
    small, _ = compress(dense, svd.measure(dense, None), 0.4)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert small.config._attn_implementation == "eager"
    assert not any(module.training for module in small.modules())


@torch.no_grad()
def test_greedy_text_is_the_same_without_cache(dense, tokens):
    small, _ = compress(dense, svd.measure(dense, None), 0.4)
    cached = small.generate(tokens[:2, :7], **GREEDY)
    assert torch.equal(cached, small.generate(tokens[:2, :7], **GREEDY, use_cache=False))


def test_factors_of_another_model_are_refused(tiny_llama):
    factors = svd.measure(tiny_llama(num_hidden_layers=2), None)
    for other in ({}, {"num_hidden_layers": 2, "intermediate_size": 96}):
        with pytest.raises(ModegptError, match="factors are not those of this model"):
            compress(tiny_llama(**other), factors, 0.4)


def test_a_model_that_is_compressed_already_is_refused(dense):
    small, _ = compress(dense, svd.measure(dense, None), 0.4)
    with pytest.raises(ModegptError):
        svd.measure(small, None)


CONFIGS = {
    "llama": (LowRankLlamaConfig, LowRankLlamaForCausalLM, "mlp.up_proj"),
    "opt": (LowRankOPTConfig, LowRankOPTForCausalLM, "fc1"),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_whose_ranks_do_not_fit_is_refused_by_name(family):
    config, model, name = CONFIGS[family]
    tiny = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 8}
    ranks = [[type(m).__name__ for m in model(config(**tiny, ranks={name: r})).modules()] for r in ([3, 0], [3, 3])]
    assert [kinds.count("LowRankLinear") for kinds in ranks] == [1, 2]
    for wrong in (None, 4, [4], [4, 4, 4], [4, -1], [4, 4.0], [4, "4"]):
        with pytest.raises(ValueError, match=f"config.ranks\\['{name}'\\] must list one integer >= 0 for each of 2"):
            model(config(**tiny, ranks={name: wrong}))
    for stranger in ("mlp.no_proj", "self_attn"):
        with pytest.raises(ValueError, match=f"config.ranks names '{stranger}'"):
            model(config(**tiny, ranks={stranger: [4, 4]}))


def test_rotary_frequencies_under_two_names_come_along(tiny_llama, tokens):
    """transformers makes one tensor of both where a rotary embedding that adapts to the length has been run."""
    model = tiny_llama()
    model.model.rotary_emb.original_inv_freq = model.model.rotary_emb.inv_freq
    small, _ = compress(model, svd.measure(model, tokens), 0.4)
    assert not any(buffer.is_meta for buffer in small.buffers())
