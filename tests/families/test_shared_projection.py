"""Queries and keys through one projection, from calibration to a checkpoint that loads and an export that agrees."""

import copy
from pathlib import Path

import pytest
import torch
from contract import CPU, FACTS, SIZES, far, logits, tiny
from transformers import LlamaForCausalLM, Qwen2Config

from modegpt import compress, load_model
from modegpt.calibrate import collect
from modegpt.checkpoint.export import stock_model
from modegpt.errors import ModegptError
from modegpt.pipeline import PLUS
from modegpt.streaming import compress_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = {"ratio": 0.3, "multiple_of": 2, "allocation": "measured", "measure_tokens": 512, "query_key": "shared"}


@pytest.fixture
def many(tokens):
    return tokens.repeat(8, 1)[:, :64]


@pytest.fixture(params=["llama", "llama with biases", "qwen2 with a window"])
def dense(request, tiny_llama):
    if request.param.startswith("qwen2"):
        return tiny(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1))
    return tiny_llama(attention_bias="biases" in request.param)


def test_compressed_saved_fused_and_exported_it_is_one_model(dense, many, tmp_path: Path):
    expected = logits(dense, many)
    small, report = compress(copy.deepcopy(dense), many, **SHARED | {"ratio": 0.5}, correct=0.5)
    ranks = [layer.ranks for layer in report.layers]
    assert any(each.shared for each in ranks) and len({each.query_key for each in ranks}) == 1
    assert report.block_ratio == pytest.approx(0.5, abs=0.01)
    matrices = [m.weight for m in small.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(matrix.numel() for matrix in matrices) == report.block_parameters_after
    found = logits(small, many)
    assert far(found, expected) > 1e-2

    small.save_pretrained(tmp_path / "small")
    assert torch.equal(logits(load_model(str(tmp_path / "small"), dtype="float32")[0], many), found)
    greedy = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    written = small.generate(many[:2, :7], **greedy)
    assert torch.equal(written, small.generate(many[:2, :7], **greedy, use_cache=False))
    if isinstance(dense, LlamaForCausalLM):
        stock, summary = stock_model(small)
        assert type(stock) is LlamaForCausalLM
        assert far(logits(stock, many), found) < 1e-4
        assert summary.compressed == report.block_parameters_after < summary.multiplied < summary.exported
        zeros = sum(int((m.weight == 0).sum()) for m in stock.model.layers.modules() if isinstance(m, torch.nn.Linear))
        assert summary.padding == pytest.approx(zeros / summary.exported)
    assert far(logits(small.fuse(), many), found) < 1e-4
    assert torch.equal(written, small.generate(many[:2, :7], **greedy))


def test_no_ratio_no_projection(dense, many):
    expected = logits(dense, many)
    small, report = compress(dense, many, **SHARED | {"ratio": 0.0})
    assert report.block_ratio == 0 and not any(layer.ranks.shared for layer in report.layers)
    assert far(logits(small, many), expected) < 1e-5


def test_it_loses_less_than_pairs_that_are_dropped(tiny_llama, many):
    """The queries and keys of all heads look at the same eight directions, so eight numbers say it all."""
    dense = tiny_llama().double()
    for layer in dense.model.layers:
        seen = torch.linalg.qr(torch.randn(48, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            linear.weight.data @= seen @ seen.T
    expected = logits(dense, many)
    options = SHARED | {"modules": ("query_key",), "ratio": 0.1, "gram_dtype": torch.float64}
    shared, _ = compress(copy.deepcopy(dense), many, **options)
    dropped, _ = compress(copy.deepcopy(dense), many, **options | {"query_key": "select"})
    assert far(logits(shared, many), expected) < 1e-6 < 1e-2 < far(logits(dropped, many), expected)


def test_streamed_and_from_collected_statistics_it_is_the_same(tiny_llama, many, tmp_path):
    dense = tiny_llama()
    dense.save_pretrained(tmp_path / "dense")
    expected = logits(compress(copy.deepcopy(dense), many, **SHARED, walks=2)[0], many)
    given = collect(dense, many, attention=True)
    for options in ({"statistics": given}, {"walks": 1}):
        assert far(logits(compress(copy.deepcopy(dense), many, **SHARED, **options)[0], many), expected) < 1e-5
    where = {"device": CPU, "dtype": torch.float32, "facts": FACTS}
    compress_folder(tmp_path / "dense", tmp_path / "small", many, None, **where, **SHARED)
    assert far(logits(load_model(str(tmp_path / "small"), dtype="float32")[0], many), expected) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"allocation": "global"}, "takes allocation=measured"),
        ({"modules": ("mlp",)}, "query_key is not among the modules"),
        ({"statistics": True}, "collect them with attention=True"),
    ],
    ids=["not measured", "only MLPs", "statistics without"],
)
def test_what_it_lacks_is_named(tiny_llama, many, changes, words):
    dense = tiny_llama()
    if "statistics" in changes:
        changes = {"statistics": collect(dense, many)}
    with pytest.raises(ModegptError, match=words):
        compress(dense, many, **SHARED | changes)


def test_an_opt_has_something_better(tiny_opt, many):
    with pytest.raises(ModegptError, match="a 'opt' has no query_key=shared"):
        compress(tiny_opt(), many, **PLUS | SHARED)


@pytest.mark.parametrize("ranks", [[4, 4], [4, -1, 4], [4, 4, "4"], 4, "444"], ids=str)
def test_a_config_with_other_ranks_is_refused(tiny_llama, many, ranks):
    small, _ = compress(tiny_llama(), many, **SHARED)
    small.config.shared_ranks = ranks
    with pytest.raises(ValueError, match=r"config\.shared_ranks must list one integer"):
        type(small)(small.config)
