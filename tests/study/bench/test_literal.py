"""`modegpt bench literal`: both ways must come to the same layer, or their times compare nothing."""

from functools import partial

import pytest
import torch

from modegpt import pipeline
from modegpt.decompose import cr_select, leverage_scores, nystrom
from modegpt.study.bench import literal
from modegpt.study.bench.literal import STEPS, literal_rows, time_steps
from modegpt.study.bench.shapes import random_model
from modegpt.study.results import load

CPU = torch.device("cpu")
OPTIONS = {"samples": 8, "length": 128, "batch_size": 3}


@pytest.fixture(params=["tiny-llama", "tiny-opt"])
def shape(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def exact(request, monkeypatch):
    """Models in full precision: their activations are then known to more than three digits."""
    monkeypatch.setattr(literal, "random_model", partial(random_model, dtype=request.param))


@pytest.mark.usefixtures("one_thread", "exact")
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_the_text_and_this_kit_come_to_the_same_layer(shape, ratio):
    agreement = time_steps(shape, CPU, ratio=ratio, **OPTIONS)["agreement"]
    assert agreement["channels"] == 1 and agreement["dims"] == 1
    assert agreement["value_output"] < 1e-6
    assert agreement["gram_error"].keys() == {"mlp", "query", "key"}
    assert max(agreement["gram_error"].values()) < 1e-6


@pytest.mark.usefixtures("one_thread", "exact")
def test_a_wrong_value_output_would_show(shape, monkeypatch):
    def one_direction_less(gram, value, output, rank):
        new_value, new_output, damping = right(gram, value, output, rank)
        return new_value[..., :-1], new_output[..., :-1, :], damping

    right = pipeline.value_output_svd
    monkeypatch.setattr(pipeline, "value_output_svd", one_direction_less)
    assert time_steps(shape, CPU, **OPTIONS)["agreement"]["value_output"] > 1e-3


def test_the_mlp_by_pseudo_inverse_is_the_regression():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 30, dtype=torch.float64, generator=draw) * torch.linspace(0.1, 2, 30, dtype=torch.float64)
    gram, down = rows.mT @ rows / 400, torch.randn(30, 7, dtype=torch.float64, generator=draw)
    keep, new = literal._mlp(gram, down, 12)
    wanted, solved, _ = nystrom(gram, down, 12)
    assert torch.equal(keep, wanted) and keep.tolist() == leverage_scores(gram).topk(12).indices.sort().values.tolist()
    torch.testing.assert_close(new, solved, rtol=1e-6, atol=1e-8)
    by_hand = torch.linalg.lstsq(rows[:, keep], rows @ down).solution
    torch.testing.assert_close(new, by_hand, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rotary", [True, False])
def test_column_norms_of_a_root_are_those_of_the_diagonal(rotary):
    draw = torch.Generator().manual_seed(0)
    spread = torch.rand(2, 3, 1, 16, dtype=torch.float64, generator=draw)
    query = torch.randn(2, 3, 200, 16, dtype=torch.float64, generator=draw) * spread
    key = torch.randn(2, 200, 16, dtype=torch.float64, generator=draw) * spread[:, 0]
    grams = query.mT @ query, key.mT @ key
    found = literal._query_key(*grams, 10, rotary)
    assert torch.equal(found, cr_select(*grams, 10, rotary, pair_score="sum"))


@pytest.mark.usefixtures("one_thread")
def test_rows_add_up(shape):
    found = time_steps(shape, CPU, **OPTIONS)
    rows = literal_rows(found)
    value = {(row.what, row.method, row.variant): row.value for row in rows}
    assert len(value) == len(rows) == 2 * (len(STEPS) + 1) + 1 + 2 + 1 + 3
    ours, theirs = ([value[f"one layer: {step}", method, ""] for step in STEPS] for method in ("modegpt", "literal"))
    assert min(ours + theirs) > 0 and found["layers"] == 2
    assert value["all layers", "modegpt", ""] == pytest.approx(2 * (sum(ours) + ours[0]))  # two walks
    assert value["all layers", "literal", ""] == pytest.approx(2 * sum(theirs))
    ratio = value["all layers", "literal", ""] / value["all layers", "modegpt", ""]
    assert value["speed-up", "modegpt", ""] == pytest.approx(ratio)


def test_the_command_writes_them(modegpt, tmp_path):
    sizes = ["--samples", 4, "--length", 64, "--batch-size", 2, "--device", "cpu"]
    file = tmp_path / "literal.json"
    ended = modegpt("bench", "literal", "--shapes", "tiny-llama,tiny-opt", "--out", file, *sizes)
    assert ended.code == 0, ended.err
    results = load(file)
    assert {row.model for row in results.find(what="speed-up")} == {"tiny-llama", "tiny-opt"}
    assert all(0 <= row.value <= 1 for row in results.rows if row.unit == "share")
    assert results.settings == {"ratio": 0.3, "samples": 4, "length": 64, "batch_size": 2}


@pytest.mark.parametrize(
    ("options", "words"), [(["--shapes", "bert"], "unknown shape 'bert'"), (["--ratio", "1"], "ratio is the share")]
)
def test_a_bad_option_is_one_line(modegpt, tmp_path, options, words):
    ended = modegpt("bench", "literal", "--out", tmp_path / "literal.json", "--device", "cpu", *options)
    assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1
