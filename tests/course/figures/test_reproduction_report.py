import matplotlib.pyplot as plt
import pytest

from modegpt.course.figures import reproduction_report as figures
from modegpt.study.verdicts import FAILED, SHAPE, UNTESTED, Compared, Finding


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_number_is_a_multiple_of_the_papers_with_its_band():
    findings = [
        Finding("gain", "", "", SHAPE, numbers=(Compared("gain", 0.2, 0.1, 0.15, 0.25), Compared("s", 10, 1, 0, 10))),
        Finding("share", "", "", FAILED, numbers=(Compared("share", 0.5, 0.05, 0.5, 1.0),)),
        Finding("7B", "", "", UNTESTED, why="no weights"),
        Finding("no number", "", "", SHAPE),
    ]
    (axes,) = figures.deviations(findings).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gain", "s", "share", "7B"]
    points = [line for line in axes.lines if line.get_marker() not in ("None", "")][:3]
    assert [point.get_xdata()[0] for point in points] == pytest.approx([0.5, 0.1, 0.1])
    assert points[0].get_marker() == figures.LOOKS[SHAPE][1] and points[2].get_marker() == figures.LOOKS[FAILED][1]
    filled = [point.get_markerfacecolor() != "white" for point in points]
    assert filled == [number.agrees for finding in findings for number in finding.numbers]
    bands = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert bands[0] == pytest.approx((0.75, 1.25)) and bands[2] == pytest.approx((1, 2))
    assert bands[1] == pytest.approx((axes.get_xlim()[0], 1))  # from nothing on
    words = [text.get_text().strip() for text in axes.texts]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [SHAPE, FAILED]  # those that are there
    assert words == ["0.1; paper 0.2", "1; paper 10", "0.05; paper 0.5", "not testable here"]


def test_perplexities_are_multiples_of_the_dense_models():
    (axes,) = figures.growth({"7b": {0.3: 6.0, 0.0: 4.0}}, {"small": {0.0: 20.0, 0.5: 80.0}}).axes
    theirs, ours = axes.lines
    assert list(theirs.get_xdata()) == [0, 30] and list(theirs.get_ydata()) == [1, 1.5]
    assert list(ours.get_xdata()) == [0, 50] and list(ours.get_ydata()) == [1, 4]
    assert theirs.get_color() != ours.get_color()


def test_accuracies_stand_beside_guessing_with_two_standard_errors():
    cases = {"dense": [(0.5, 0.01), (0.6, 0.02)], "30%": [(0.4, 0.01), (0.5, 0.02)]}
    (axes,) = figures.above_guessing(["a", "b"], [0.25, 0.5], cases).axes
    guessing, dense, small = axes.containers
    assert [bar.get_height() for bar in guessing] == [25, 50]
    assert list(dense[0].get_ydata()) == [50, 60] and list(small[0].get_ydata()) == [40, 50]
    (bars,) = dense[2]
    assert [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()] == pytest.approx([4, 8])
    assert all(a < b for a, b in zip(dense[0].get_xdata(), small[0].get_xdata(), strict=True))
