"""Rows are found by what they are, whatever file they lie in."""

import pytest
import torch

from modegpt.calibrate import collect
from modegpt.layer_statistics import LayerStatistics
from modegpt.study.bench import readings
from modegpt.study.bench.compress import compression_rows, time_compression
from modegpt.study.bench.literal import STEPS, literal_rows, time_steps
from modegpt.study.bench.shapes import SHAPES, config_of, random_model, random_tokens
from modegpt.study.results import Results, Row

CPU = torch.device("cpu")
SIZES = {"ratio": 0.3, "samples": 6, "length": 24, "batch_size": 2}


def results(rows, experiment="bench.compress"):
    return Results.now(experiment, "", {"samples": 6, "length": 24}, rows, "cpu", "")


@pytest.mark.usefixtures("one_thread")
def test_what_the_bench_measures_is_read_again():
    timed = time_compression("tiny-llama", CPU, walks=2, **SIZES)
    steps = time_steps("tiny-llama", CPU, ratio=0.3, samples=8, length=128, batch_size=4)
    run = results([*compression_rows(timed, "2 walks"), *literal_rows(steps)], readings.LIVE)
    (whole,) = readings.wholes([run])
    assert (whole.shape, whole.variant, whole.tokens) == ("tiny-llama", "2 walks", 144)
    assert whole.seconds == timed["seconds"]["total"] and whole.calibrate == timed["seconds"]["calibrate"]
    assert whole.decompose == timed["seconds"]["decompose"]
    assert whole.peak_above == timed["peak_bytes"] - timed["model_bytes"]
    assert readings.ledger("tiny-llama", 0)["weights"] == timed["model_bytes"]
    (pair,) = readings.side_by_side([run])
    assert list(readings.steps_of(run, "tiny-llama")) == list(STEPS)
    assert readings.steps_of(run, "tiny-llama", "literal") == steps["seconds"]["literal"]
    assert pair.literal == pytest.approx(2 * sum(steps["seconds"]["literal"].values()))
    assert pair.ours == pytest.approx(
        2 * (sum(steps["seconds"]["ours"].values()) + steps["seconds"]["ours"]["forward"])
    )
    assert pair.in_common == min(steps["agreement"]["channels"], steps["agreement"]["dims"])
    assert pair.differ == steps["agreement"]["value_output"]
    assert readings.name_of(pair.shape, run) == "tiny-llama, live"
    assert readings.steps_of(run, "llama-2-7b") == {} and readings.name_of("x", results([])) == "x"


def test_a_failed_or_streamed_compression_is_no_whole_one():
    fields = {"unit": "s", "model": "tiny-llama", "method": "modegpt", "ratio": 0.3}
    failed = Row(what="compression", value=None, details={"error": "memory"}, **fields)
    streamed = Row(what="compression", value=2.0, variant="streamed", **fields)
    assert readings.wholes([results([failed, streamed])]) == []


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt"])
def test_statistics_take_the_bytes_that_are_counted(shape):
    model = random_model(shape, device="cpu", dtype=torch.float32)
    config = model.config
    seen: list[LayerStatistics] = collect(model, random_tokens(config, 2, 16))
    gathered = sum(getattr(s, part).nbytes for s in seen for part in ("mlp", "query", "key"))
    wide = 8 * config.num_hidden_layers * config.hidden_size**2  # E[x x^T], which the kit does without
    assert readings.statistics_bytes(config) == gathered + wide
    assert readings.statistics_bytes(config, item=1) * 8 == gathered + wide


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ledger_knows_every_shape(shape):
    book = readings.ledger(shape, 10)
    assert book["hidden states"] == 2 * 10 * config_of(shape).hidden_size
    assert (
        book["its Cholesky factor"] == book["one Gram matrix, float64"] == 8 * readings.channels(config_of(shape)) ** 2
    )


def speed(ratio, value, layers=2, model="tiny-llama, 2 layers", what="prefill", **details):
    about = {"mode": "eager", "batch": 1, "tokens": 24, "layers": layers} | details
    about |= {"speed_up": value / 10, "allowed": 2.0, "reached": value / 20} if ratio else {}
    method, variant = "modegpt" if ratio else "dense", str(about)
    return Row(
        what=what, value=value, unit="tokens/s", model=model, method=method, ratio=ratio, variant=variant, details=about
    )


def test_a_case_is_taken_from_the_run_that_has_most_ratios_of_it():
    case = {"mode": "eager", "batch": 1, "tokens": 24}
    short = results([speed(0.0, 10.0), speed(0.3, 13.0)])
    long = results([speed(0.5, 18.0), speed(0.0, 10.0), speed(0.3, 14.0), speed(0.7, 99.0, batch=4)])
    others = results([speed(r, 1.0, layers=1) for r in (0.0, 0.1, 0.2, 0.3)], "sweep")
    headless = results([speed(r, 1.0) for r in (0.1, 0.2, 0.3, 0.4, 0.5)], "headless")
    rows = readings.speed_rows([short, long, others, headless], "tiny-llama", "prefill", **case)
    assert [(row.ratio, row.value) for row in rows] == [(0.0, 10.0), (0.3, 14.0), (0.5, 18.0)]
    others = results([speed(r, 1.0) for r in (0.0, 0.3)] + [speed(r, 1.0, fused=True) for r in (0.1, 0.2, 0.4, 0.5)])
    assert len(readings.speed_rows([others], "tiny-llama", "prefill", **case)) == 2
    assert readings.speed_rows([short], "tiny-llama", "decode", **case) == []
    assert readings.speed_rows([short], "llama-2-7b", "prefill", **case) == []


def test_shares_of_what_is_allowed_are_collected_over_runs():
    first, second = (results([speed(0.0, 10.0), speed(0.3, value), speed(0.3, 5.0, layers=1)]) for value in (13, 14))
    found = readings.reached([first, second], "tiny-llama")
    assert list(found) == [("prefill", "eager", 1, 24)]
    assert [row.value for row in found["prefill", "eager", 1, 24][0.3]] == [13, 14]


def test_kernels_are_split_into_matrix_products_and_all_else():
    kinds = {"matrix product": {"count": 3, "seconds": 0.75}, "copy": {"count": 1, "seconds": 0.25}}
    fields = {"what": "decode kernels", "unit": "s", "model": "tiny-llama, 2 layers", "method": "dense", "ratio": 0.0}
    details = {"mode": "graph", "kinds": kinds, "kernels": 4}
    runs = [results([Row(value=value, details=details, **fields)]) for value in (9.0, 1.0)]
    assert readings.kernel_seconds(runs, "tiny-llama") == {("decode", "graph", 0.0): (4, 0.75, 0.25)}
    assert readings.kernel_seconds(runs, "llama-2-7b") == {}
    fused = results([Row(value=5.0, details=details | {"fused": True}, **fields)])
    assert readings.kernel_seconds([fused], "tiny-llama") == {}
