from inspect import signature
from pathlib import Path

import pytest
import torch

from modegpt import compress as compress_model
from modegpt.allocate import SharedShape
from modegpt.cli.bench import throughput
from modegpt.cli.compress import compress
from modegpt.errors import ModegptError
from modegpt.families import FAMILIES
from modegpt.study.bench.decoding import Decoding, cache_error
from modegpt.study.bench.shapes import random_model
from modegpt.study.bench.throughput import (
    Bench,
    Candidate,
    advised_multiple,
    compressed_model,
    ranks_like,
    speed_up,
)
from modegpt.study.bench.timing import timed
from modegpt.study.results import Row, load

CPU = torch.device("cpu")
FIGURES = Path(__file__).parents[3] / "figures" / "results"
SMALL = {"shape": "tiny-llama", "device": "cpu", "dtype": "float32", "prompt": 24, "context": 8, "sweep_layers": 1}
SMALL |= {"ratios": "0.3,0.5", "multiples": "2,8", "batches": "2,1", "decode_batches": "1,2", "multiple_of": 4}


@pytest.fixture
def dense():
    return random_model("tiny-llama", device="cpu", dtype=torch.float32)


@pytest.fixture
def bench(tmp_path):
    return Bench({"shape": "tiny-llama", "seed": 0}, tmp_path / "speed.json", CPU, minutes=1)


@pytest.mark.usefixtures("one_thread")
def test_a_run_leaves_rows_with_their_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "modegpt.study.bench.throughput.timed", lambda run, device, **_: timed(run, device, budget=0.01)
    )
    throughput(tmp_path / "speed.json", **SMALL)
    results = load(tmp_path / "speed.json")
    assert results.settings["left_out"] == [] and all(row.error is None for row in results.rows)
    speeds = [row for row in results.rows if row.what in ("prefill", "decode")]
    # main table: three models, two phases, two batches, decoding also with four times the context, fused; the sweep
    assert len([row for row in speeds if row.details["layers"] == 2]) == 3 * (2 + 2 + 1 + 2)
    assert len([row for row in speeds if row.details["layers"] == 1]) == 5 * (1 + 2)
    fused = [row for row in speeds if row.details["fused"]]
    assert [row.ratio for row in fused] == 2 * [0, 0.3, 0.5]
    for row in speeds:
        details = row.details
        tokens = details["batch"] * (details["tokens"] if row.what == "prefill" else 1)
        assert row.value == pytest.approx(tokens / details["seconds"]) and details["repeats"] >= 3
        assert details["fastest"] <= details["seconds"] <= details["slowest"]
        assert ("reached" in details) == (row.method != "dense")
        if row.ratio:
            assert 1 < details["allowed"] < 1.05 / (1 - row.ratio)
            assert details["reached"] == pytest.approx(details["speed_up"] / details["allowed"])
    (advice,) = results.find(what="advised multiple_of")
    assert advice.value in (2, 8) and advice.details["cases"] == 2 * 3
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    errors = results.find(what="cache error")
    assert [row.ratio for row in errors] == [0, 0.3, 0.5] and all(row.value < 1e-5 for row in errors)
    assert errors[1].details["ranks"][0]["query_key"] % 4 == 0


@pytest.mark.usefixtures("one_thread")
def test_sizes_like_another_models_are_stretched_over_depth_and_only_the_steps_asked_for_are_done(
    tmp_path, tiny_llama, tokens, monkeypatch
):
    monkeypatch.setattr(
        "modegpt.study.bench.throughput.timed", lambda run, device, **_: timed(run, device, budget=0.01)
    )
    small, _ = compress_model(tiny_llama(), tokens, ratio=0.4, multiple_of=2)
    small.save_pretrained(tmp_path / "other")
    throughput(tmp_path / "speed.json", like=str(tmp_path / "other"), steps="decode 1,fused", **SMALL)
    results = load(tmp_path / "speed.json")
    speeds = [row for row in results.rows if row.what in ("prefill", "decode")]
    rows = [row for row in speeds if row.details["like"] == "other"]
    assert [(row.what, row.details["fused"]) for row in rows] == [
        ("decode", False),
        ("prefill", True),
        ("decode", True),
    ]
    assert all(row.ratio == pytest.approx(0.4, abs=0.1) for row in rows)
    assert {row.what for row in speeds if not row.details["fused"]} == {"decode"}
    ranks = results.find(what="cache error", ratio=rows[0].ratio)[0].details["ranks"]
    for name, full in (("query_key", 16), ("value", 16), ("mlp", 172)):
        theirs = getattr(small.config, f"{name}_ranks")
        share = theirs[0] / {"mlp": small.config.intermediate_size}.get(name, small.config.head_dim)
        assert ranks[0][name] == pytest.approx(share * full, abs=2)
    assert ranks[0] != ranks[1]


def test_sizes_like_those_of_a_shared_projection_have_one_too(dense):
    own = SharedShape.of(FAMILIES["llama"].shape(dense), 64)
    layers = [own.ranks(own.query_key, 16, 172), own.ranks(8, 4, 86)]
    config = compressed_model(dense, 0.5, 1, layers).config
    assert config.shared_ranks == [0, 8] and ranks_like(config, own, 2, 1) == layers
    between = ranks_like(config, own, 3, 1)[1]
    assert between.query_key == 16 and between.shared == pytest.approx((own.query_key + 8) / 2, abs=1)


def test_without_time_everything_is_left_out(tmp_path):
    throughput(tmp_path / "speed.json", minutes=0, **SMALL)
    results = load(tmp_path / "speed.json")
    assert not (tmp_path / "speed.png").exists()
    assert results.rows == [] and "sweep" in results.settings["left_out"]


def test_what_fails_is_noted_with_its_reason_and_the_rest_goes_on(bench, dense):
    bench.attempt("decode", lambda: bench.decode([Candidate(0.0, 1, dense)], 1, 8, ["graph", "eager"]))
    bench.attempt("nothing", lambda: bench.prefill([Candidate(0.0, 1, None)], 1, 8))
    graph, eager, broken = load(bench.file).rows
    assert "CUDA" in graph.error and graph.value is None
    assert eager.value > 0 and eager.error is None
    assert "AttributeError" in broken.error and broken.variant == "nothing"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "llama-9"}, "llama-9"),
        ({"shape": "tiny-opt"}, "tiny-opt is none"),
        ({"sweep_layers": 9}, "2 layers, got 9"),
        ({"ratios": "much"}, "--ratios is a list"),
        ({"ratios": "30"}, "30"),
        ({"dtype": "int8"}, "--dtype"),
        ({"device": "cuda"}, "no GPU"),
        ({"steps": "decode,fly"}, "no step begins with 'fly'"),
        ({"like": "nowhere"}, "nowhere holds no model"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModegptError, match=words):
        throughput(tmp_path / "speed.json", **SMALL | options)


def test_a_random_compressed_model_keeps_sorted_pairs_of_its_own_in_every_head(dense):
    model = compressed_model(dense, 0.5, 4)
    for layer in model.model.layers:
        low, high = layer.self_attn.rotary_index.chunk(2, dim=-1)
        assert torch.equal(high, low + 8) and low.max() < 8
        assert (low.diff(dim=-1) > 0).all()
    first = [layer.self_attn.rotary_index for layer in model.model.layers]
    assert len({tuple(index.flatten().tolist()) for index in first}) > 1
    assert all(torch.isfinite(p).all() and p.std() > 0 for p in model.parameters() if p.dim() > 1)


def test_decoding_starts_again_where_it_started(dense):
    model = compressed_model(dense, 0.3, 2)
    with torch.no_grad():
        decoding = Decoding(model, 3, 8)
        written = []
        for _ in range(2):
            decoding.steps(decoding.step, 20)
            written.append(decoding.ids.clone())
        assert decoding.cache.layers[-1].get_seq_length() == 28
        assert torch.equal(*written)
        assert cache_error(model) < 1e-5


def test_a_replay_that_computes_something_else_shows(dense):
    with torch.no_grad():
        decoding = Decoding(dense, 3, 8)
        right = decoding.step().new_empty(3, 1, 256)
        wrong = torch.ones_like(right)

        def replay() -> None:
            right.copy_(decoding.step())

        assert decoding.difference(replay, right) == {"launched_again": 0.0, "replayed": 0.0}
        assert decoding.difference(replay, wrong)["replayed"] > 0.1


def test_a_wrong_cache_shows(dense, monkeypatch):
    monkeypatch.setattr("transformers.cache_utils.StaticLayer.update", lambda self, key, value, *_: (key, value))
    monkeypatch.setattr("transformers.cache_utils.StaticLayer.get_mask_sizes", lambda self, length: (length, 0))
    with torch.no_grad():
        assert cache_error(dense) > 1e-3


def row(**details):
    case = {"mode": "eager", "batch": 1, "tokens": 8, "layers": 8} | details
    of = {"method": "modegpt", "ratio": 0.3} if "multiple_of" in details else {"method": "dense", "ratio": 0.0}
    variant = str(sorted(details.items()))
    return Row(what="prefill", value=1.0, unit="tokens/s", model="m", variant=variant, details=case, **of)


def test_speed_up_is_against_the_dense_row_of_the_same_case():
    rows = [row(batch=4, seconds=9.0, flops=900), row(seconds=2.0, flops=100)]
    found = speed_up("prefill", row(multiple_of=8, seconds=1.6, flops=50).details, rows)
    assert found == {"speed_up": 1.25, "allowed": 2.0, "reached": 0.625}
    assert speed_up("prefill", row(multiple_of=8, layers=7, seconds=1.6, flops=50).details, rows) == {}


def test_the_smallest_multiple_that_is_fast_enough_is_advised():
    speeds = {1: (0.9, 1.2), 8: (1.40, 1.69), 16: (1.41, 1.70), 64: (1.1, 1.9)}
    rows = [
        row(multiple_of=m, batch=b, speed_up=s) for m, both in speeds.items() for b, s in zip((1, 4), both, strict=True)
    ]
    advice = advised_multiple(rows, layers=8)
    assert advice.value == 8 and advice.details["mean_speed_up"]["16"] == pytest.approx((1.41 * 1.70) ** 0.5)
    assert advised_multiple(rows, layers=8, tolerance=1e-4).value == 16
    assert advised_multiple(rows, layers=32) is None
    incomplete = [*rows, row(multiple_of=1, batch=16, speed_up=9.0)]
    assert advised_multiple(incomplete, layers=8).details["cases"] == 2


def test_the_default_multiple_is_the_one_that_the_committed_run_advises():
    results = load(FIGURES / "throughput.llama-2-7b.h100.json")
    advice = advised_multiple(results.rows, results.settings["sweep_layers"])
    (noted,) = results.find(what="advised multiple_of")
    assert advice.details["mean_speed_up"] == pytest.approx(noted.details["mean_speed_up"])
    assert advice.value == noted.value == signature(compress).parameters["multiple_of"].default
