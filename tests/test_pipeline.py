import copy

import pytest
import torch
from torch.testing import assert_close

from modegpt import pipeline
from modegpt.allocate import softmax_allocation
from modegpt.calibrate import collect
from modegpt.errors import ModegptError, ModegptWarning
from modegpt.families import Decomposed, FreeMatrices, family_of
from modegpt.pipeline import compress
from modegpt.report import count_parameters

KINDS = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "head_dim": 24},
    {"tie_word_embeddings": True},
]


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


@pytest.mark.parametrize("options", [{"allocation": "uniform"}, {"inputs": "compressed"}, {"multiple_of": 32}], ids=str)
def test_ratio_0_is_the_identity_whatever_the_options(tiny_llama, tokens, options):
    dense = tiny_llama()
    small, report = compress(copy.deepcopy(dense), tokens, ratio=0, **options)
    assert torch.equal(logits(small, tokens), logits(dense, tokens))
    assert report.parameters_after == report.parameters_before and report.block_ratio == 0


@pytest.mark.parametrize("module", ["mlp", "query_key", "value"])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_each_module_alone_at_full_rank_is_the_identity(tiny_llama, tokens, changes, module):
    """Full rank through every decomposition of one module: permuted, rotated or solved again, but the same map."""
    dense = tiny_llama(**changes).double()
    family, model = family_of(dense), copy.deepcopy(dense)
    ranks = [family_ranks(family, dense)] * len(family.layers(dense))
    shell = family.shell(model, ranks)
    for index, layer in enumerate(family.layers(model)):
        matrices = family.matrices(layer)
        channels = torch.arange(dense.config.intermediate_size)
        kv_heads, d = dense.config.num_key_value_heads, dense.config.head_dim
        dims = torch.arange(d).expand(kv_heads, -1)
        down, value, output = matrices.down, matrices.value, matrices.output
        if module == "mlp":
            channels = torch.randperm(len(channels))
            down = down[channels]
        elif module == "query_key":
            pairs = torch.stack([torch.randperm(d // 2) for _ in range(kv_heads)])
            dims = torch.cat([pairs, pairs + d // 2], 1)
        else:
            mix = torch.randn(kv_heads, d, d, dtype=torch.float64)
            value, output = value @ mix, torch.linalg.solve(mix[:, None], output)
        small = family.layers(shell)[index]
        family.fill(small, layer, Decomposed(channels, dims, FreeMatrices(down, value, output)))
    torch.testing.assert_close(logits(shell, tokens), logits(dense, tokens), rtol=1e-9, atol=1e-9)


def family_ranks(family, model):
    from modegpt.allocate import Ranks

    shape = family.shape(model)
    return Ranks(shape.query_key, shape.value, shape.mlp)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_report_counts_the_parameters_that_the_model_has(tiny_llama, tokens, changes):
    dense = tiny_llama(**changes)
    matrices = sum(p.numel() for name, p in dense.model.layers.named_parameters() if "norm" not in name)
    small, report = compress(copy.deepcopy(dense), tokens, ratio=0.3, multiple_of=2)
    gone = count_parameters(dense) - count_parameters(small)
    assert report.parameters_before == count_parameters(dense)
    assert report.parameters_after == count_parameters(small)
    assert report.block_ratio == pytest.approx(gone / matrices)
    assert report.model_ratio == pytest.approx(gone / count_parameters(dense))
    assert abs(report.block_ratio - 0.3) * matrices <= 3 * dense.config.hidden_size  # half of one unit of two channels
    for layer, kept in zip(small.model.layers, report.to_dict()["ranks"], strict=True):
        assert layer.mlp.up_proj.out_features == kept["mlp"]
        assert layer.self_attn.rotary_index.shape[-1] == kept["query_key"]
        assert layer.self_attn.v_proj.out_features == kept["value"] * dense.config.num_key_value_heads


def test_compressing_collected_statistics_equals_compressing_the_tokens(tiny_llama, tokens):
    dense = tiny_llama()
    streamed, _ = compress(copy.deepcopy(dense), tokens, ratio=0.3)
    statistics = collect(dense, tokens)
    for _ in range(2):  # the statistics serve many runs
        collected, _ = compress(copy.deepcopy(dense), statistics, ratio=0.3)
        assert torch.equal(logits(collected, tokens), logits(streamed, tokens))


def test_compressed_inputs_change_all_layers_but_the_first(tiny_llama, tokens):
    small = {
        inputs: compress(tiny_llama(), tokens, ratio=0.3, inputs=inputs, allocation="uniform")[0]
        for inputs in ("dense", "compressed")
    }
    same = [
        all(torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for x, y in zip(small["dense"].model.layers, small["compressed"].model.layers, strict=True)
    ]
    assert same == [True, False, False]


def test_layers_are_replaced_as_they_are_done(tiny_llama, tokens):
    dense = tiny_llama()
    small, _ = compress(dense, tokens, ratio=0.3)
    assert all(a is b for a, b in zip(dense.model.layers, small.model.layers, strict=True))
    assert small.lm_head is dense.lm_head


def test_tied_embeddings_stay_tied_and_count_once(tiny_llama, tokens, tmp_path):
    small, report = compress(tiny_llama(tie_word_embeddings=True), tokens, ratio=0.3)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    small.save_pretrained(tmp_path)
    loaded = type(small).from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert count_parameters(loaded) == report.parameters_after


def test_better_calibration_data_than_none(tiny_llama, tokens):
    """The decompositions fit the data: on its own calibration tokens the model beats one fitted to other tokens."""
    dense = tiny_llama()
    other = torch.randint(2, 10, tokens.shape, generator=torch.Generator().manual_seed(3))
    reference = logits(dense, tokens)
    error = {
        name: (logits(compress(copy.deepcopy(dense), data, ratio=0.3)[0], tokens) - reference).norm()
        for name, data in {"own": tokens, "other": other}.items()
    }
    assert error["own"] < error["other"]


def test_text_needs_a_tokenizer(tiny_llama):
    with pytest.raises(ModegptError, match="tokenizer"):
        compress(tiny_llama(), "some text", ratio=0.3)


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan")])
def test_ratio_out_of_range_is_refused_before_any_work(tiny_llama, ratio):
    with pytest.raises(ModegptError, match="ratio"):
        compress(tiny_llama(), None, ratio=ratio)


def test_few_tokens_warn_with_tokens_and_dims_and_damp_the_regression(tiny_llama, tokens):
    dense = tiny_llama()
    small, report = compress(copy.deepcopy(dense), tokens[:1, :30], ratio=0.3)
    assert any("30 calibration tokens" in w and "80 MLP channels" in w for w in report.warnings)
    assert all(layer.damping == pipeline.FEW_TOKENS_DAMPING for layer in report.layers if layer.ranks.mlp < 80)
    assert torch.isfinite(logits(small, tokens)).all()
    many = torch.randint(2, 128, (20, 40), generator=torch.Generator().manual_seed(2))
    _, report = compress(dense, many, ratio=0.3)
    assert not report.warnings and all(layer.damping < 1e-6 for layer in report.layers)


def test_damping_keeps_few_tokens_from_fitting_noise(tiny_llama, tokens, monkeypatch):
    """As many tokens as kept channels is where an undamped regression does worst."""
    dense = tiny_llama()
    error = {}
    for damping in (1e-10, pipeline.FEW_TOKENS_DAMPING):
        monkeypatch.setattr(pipeline, "FEW_TOKENS_DAMPING", damping)
        small, _ = compress(copy.deepcopy(dense), tokens[:2, :28], ratio=0.3, multiple_of=2)
        error[damping] = (logits(small, tokens[2:]) - logits(dense, tokens[2:])).norm()
    assert error[damping] < error[1e-10]


def test_the_scores_in_the_report_explain_the_sparsity(tiny_llama, tokens):
    for inputs in ("dense", "compressed"):
        _, report = compress(tiny_llama(), tokens, ratio=0.3, inputs=inputs)
        result = report.to_dict()
        sparsity = softmax_allocation(torch.tensor(result["block_influence"], dtype=torch.float64), 0.3)
        assert result["sparsity"] == pytest.approx(sparsity.tolist(), abs=1e-12)


def test_a_model_that_was_taken_apart_is_refused_with_advice(tiny_llama, tokens):
    dense = tiny_llama()
    compress(dense, tokens, ratio=0.3)
    with pytest.raises(ModegptError, match="deep copy"):
        compress(dense, tokens, ratio=0.3)


@pytest.mark.parametrize("part", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_nan_outside_the_layers_is_named(tiny_llama, tokens, part):
    dense = tiny_llama()
    dense.get_parameter(part).data.view(-1)[0] = torch.nan
    with pytest.raises(ModegptError, match=part):
        compress(dense, tokens, ratio=0.3)


@pytest.mark.parametrize(
    "options",
    [{"epsilon": 0}, {"cap": 1.5}, {"cap": 0.2}, {"multiple_of": 0}, {"allocation": "globl"}, {"multiple_of": 512}],
    ids=str,
)
def test_bad_options_are_refused_before_any_work(tiny_llama, options):
    with pytest.raises(ModegptError):
        compress(tiny_llama(), None, ratio=0.3, **options)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.25, 0.33, 0.5])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_a_uniform_allocation_meets_the_budget_over_all_layers(tiny_llama, tokens, ratio, multiple_of):
    options = {"allocation": "uniform", "multiple_of": multiple_of}
    _, report = compress(tiny_llama(), tokens, ratio=ratio, **options)
    unit = multiple_of * 3 * 48
    assert abs(report.block_ratio - ratio) * report.block_parameters_before <= unit / 2 + 1e-6
    widths = [layer.ranks.mlp for layer in report.layers]
    assert max(widths) - min(widths) <= multiple_of


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.33])
def test_an_equal_allocation_gives_every_layer_the_same_ranks_to_within_half_a_unit(tiny_llama, tokens, ratio):
    options = {"allocation": "equal", "multiple_of": 8, "modules": ("mlp",)}
    _, report = compress(tiny_llama(), tokens, ratio=ratio, **options)
    assert len({layer.ranks for layer in report.layers}) == 1
    assert abs(report.block_ratio - ratio) * report.block_parameters_before <= 3 * (8 * 3 * 48) / 2 + 1e-6


def test_a_layer_never_loses_more_than_its_modules_can_bear(tiny_llama, tokens):
    """A low temperature takes all that the cap allows from one layer, here of the MLP's share alone."""
    options = {"modules": ("mlp",), "epsilon": 1e-3, "multiple_of": 2}
    _, report = compress(tiny_llama(), tokens, ratio=0.3, **options)
    assert report.block_ratio == pytest.approx(0.3, abs=0.01)
    assert min(layer.ranks.mlp for layer in report.layers) == pytest.approx(0.1 * 80, abs=2)


def test_collected_statistics_must_be_those_of_the_model_and_of_dense_inputs(tiny_llama, tokens):
    dense = tiny_llama()
    statistics = collect(dense, tokens)
    with pytest.raises(ModegptError, match="dense inputs"):
        compress(dense, statistics, ratio=0.3, inputs="compressed")
    for other in (tiny_llama(num_hidden_layers=2), tiny_llama(intermediate_size=64)):
        with pytest.raises(ModegptError, match="not those of this model"):
            compress(other, statistics, ratio=0.3)


def test_statistics_that_the_host_cannot_hold_take_a_second_walk_and_it_is_said(tiny_llama, tokens, monkeypatch):
    once, report = compress(tiny_llama(), tokens, ratio=0.3)
    monkeypatch.setattr(pipeline, "free_host_bytes", lambda: 1)
    with pytest.warns(ModegptWarning, match="half of the host's free memory is 0.0: the model is walked through twice"):
        twice, again = compress(tiny_llama(), tokens, ratio=0.3)
    assert [layer.ranks for layer in again.layers] == [layer.ranks for layer in report.layers]
    assert_close(logits(twice, tokens), logits(once, tokens))
