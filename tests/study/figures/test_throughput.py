import matplotlib.pyplot as plt
import pytest

from modegpt.study.figures.throughput import throughput_against_ratio
from modegpt.study.results import Results, Row


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def row(what, ratio, value, mode="eager", layers=32, batch=1, multiple_of=8):
    tokens = 2048 if what == "prefill" else 512
    details = {"mode": mode, "batch": batch, "tokens": tokens, "layers": layers, "multiple_of": multiple_of}
    if ratio:
        details |= {"speed_up": value / 100, "allowed": 1 / (1 - ratio), "reached": value / 100 * (1 - ratio)}
    method, variant = "modegpt" if ratio else "dense", str(details)
    fields = {
        "unit": "tokens/s",
        "model": "7b",
        "method": method,
        "ratio": ratio,
        "variant": variant,
        "details": details,
    }
    return Row(what=what, value=value, spread=2.0, spread_over="repeats", **fields)


@pytest.fixture
def results():
    rows = [row("prefill", 0.0, 100.0), row("prefill", 0.5, 180.0), row("prefill", 0.3, 135.0)]
    rows += [row("decode", 0.0, 50.0, "graph"), row("decode", 0.5, 90.0, "graph"), row("decode", 0.5, 51.0)]
    rows += [row("prefill", 0.0, 999.0, batch=64), row("prefill", 0.0, 400.0, layers=8)]
    rows += [row("prefill", 0.5, v, layers=8, multiple_of=m) for m, v in ((64, 190.0), (1, 120.0), (8, 188.0))]
    settings = {"shape": "llama-2-7b", "prompt": 2048, "context": 512, "sweep_layers": 8}
    return Results.now("bench.throughput", "t", settings, rows, "cpu", "modegpt bench throughput")


def test_measured_and_allowed_speed_ups_stand_side_by_side(results):
    left, middle, _ = throughput_against_ratio(results, prefill_batch=1).axes
    allowed, measured = left.lines[0], left.lines[1]
    assert allowed.get_xdata() == pytest.approx([0, 30, 50]) and allowed.get_ydata() == pytest.approx([1, 1 / 0.7, 2])
    assert measured.get_xdata() == pytest.approx([0, 30, 50]) and measured.get_ydata() == pytest.approx([1, 1.35, 1.8])
    legend = [text.get_text() for text in middle.get_legend().get_texts()]
    assert legend == [
        "allowed by what is removed",
        "CUDA graph: dense 50 tokens/s",
    ]
    assert middle.lines[1].get_ydata() == pytest.approx([1, 1.8])


def test_the_sweep_is_in_the_order_of_its_multiples(results):
    right = throughput_against_ratio(results, prefill_batch=1).axes[2]
    assert right.lines[0].get_ydata() == pytest.approx([0.6, 0.94, 0.95])
    assert [label.get_text() for label in right.get_xticklabels()] == ["off", "8", "64"]


def test_a_line_is_drawn_from_the_run_that_has_most_of_it(results):
    rows = [row("decode", 0.0, 40.0, "graph"), row("decode", 0.3, 48.0, "graph"), row("decode", 0.5, 60.0, "graph")]
    other = Results.now("bench.throughput", "t", results.settings, rows, "cpu", "modegpt bench throughput")
    middle = throughput_against_ratio(results, other, prefill_batch=1).axes[1]
    assert middle.lines[1].get_ydata() == pytest.approx([1, 1.2, 1.5])
    assert "launched kernel by kernel: 51 to 51 tokens/s" in [text.get_text() for text in middle.texts]
