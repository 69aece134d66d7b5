"""The pictures of speed show the rows that they are given."""

from dataclasses import replace
from pathlib import Path

import pytest

from modegpt.study.figures.speed import STEPS, compression, literal_steps, scaling
from modegpt.study.results import load

RESULTS = Path(__file__).parents[3] / "figures" / "results"


@pytest.fixture(scope="module")
def measured():
    return load(RESULTS / "bench.compress.h200.json")


def test_bars_add_up_to_both_steps_and_say_the_whole(measured):
    left, right = compression(measured).axes
    whole = [row for row in measured.find(what="compression") if " of " not in row.variant]
    assert len(whole) >= 4 and len(left.patches) == 2 * len(whole)
    for at, row in enumerate(whole):
        (calibrate,) = measured.find(what="compression: calibrate", model=row.model, variant=row.variant)
        (decompose,) = measured.find(what="compression: decompose", model=row.model, variant=row.variant)
        assert left.patches[2 * at].get_width() == pytest.approx(calibrate.value)
        assert left.patches[2 * at + 1].get_x() == pytest.approx(calibrate.value)
        assert left.patches[2 * at + 1].get_width() == pytest.approx(decompose.value)
        assert left.texts[at].get_text().startswith(f"{row.value:.0f} s")
    first = {row.model: row for row in reversed(measured.find(what="compression")) if "memory" in row.details}
    traces = [row.details["memory"] for row in reversed(first.values())]
    assert [len(line.get_xdata()) for line in right.lines] == [len(trace) for trace in traces]
    assert list(right.lines[0].get_ydata()) == pytest.approx([used / 2**30 for _, used in traces[0]])


def test_a_failed_shape_is_left_out(measured):
    failed = [replace(row, value=None) if row.model == "llama-2-13b" else row for row in measured.rows]
    left, _ = compression(replace(measured, rows=failed)).axes
    assert not any("13b" in label.get_text() for label in left.get_yticklabels())


@pytest.mark.parametrize("shape", ["llama-2-7b", "llama-2-13b"])
def test_every_step_stands_with_both_its_times(shape):
    results = load(RESULTS / "bench.literal.h100.json")
    (axes,) = literal_steps(results, shape).axes
    for at, step in enumerate(STEPS):
        found = {row.method: row.value for row in results.find(what=f"one layer: {step}", model=shape)}
        _, literal, ours = axes.lines[3 * at : 3 * at + 3]
        assert (literal.get_xdata()[0], ours.get_xdata()[0]) == (found["literal"], found["modegpt"])


def test_speed_ups_are_those_of_the_run():
    measured = load(RESULTS / "bench.scaling.4xh200.json")
    ideal, *lines = scaling(measured).axes[0].lines
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [1, 2, 4]
    for line, shape in zip(lines, ("llama-2-7b", "llama-2-13b"), strict=True):
        found = [row.value for row in measured.find(what="speed-up: total", model=shape)]
        assert list(line.get_ydata()) == pytest.approx([1.0, *found]) and shape in line.get_label()
