import pytest

from modegpt.course.figures import measuring


def test_every_protocol_has_both_models_and_their_ratio():
    (axes,) = measuring.protocols({"short": (25.0, 60.0), "long": (20.0, 55.0)}).axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert points == [(0, 25), (0, 60), (1, 20), (1, 55)]
    words = [text.get_text() for text in axes.texts]
    assert words == ["25.0", "60.0", "x 2.40", "20.0", "55.0", "x 2.75"]
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["short", "long"]


def test_what_a_short_window_costs_stands_in_the_middle_of_its_bucket():
    (axes,) = measuring.context_cost([0, 10, 30], {"dense": [0.8, 0.1], "compressed": [0.5, 0.05]}).axes
    _, *lines = axes.lines
    assert [list(line.get_xdata()) for line in lines] == [[5, 20]] * 2
    assert [list(line.get_ydata()) for line in lines] == [[0.8, 0.1], [0.5, 0.05]]


def test_every_draw_of_every_calibration_text_is_a_point_and_the_line_their_mean():
    found = {"a": {"x": [4.0, 6.0], "y": [9.0, 9.0]}, "b": {"x": [7.0, 7.0], "y": [3.0, 5.0]}}
    (axes,) = measuring.texts(found).axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn[:3] == [([0, 1], [5, 9]), ([0, 0], [4, 6]), ([1, 1], [9, 9])]
    assert drawn[3:] == [([0, 1], [7, 4]), ([0, 0], [7, 7]), ([1, 1], [3, 5])]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_a_bar_is_two_errors_wide_to_either_side():
    (axes,) = measuring.errors_of_a_difference(-0.02, {"separate": 0.2, "pairs": 0.01}).axes
    assert [bars[0].get_xdata()[0] for bars in axes.containers] == [-0.02, -0.02]
    ends = [bars[2][0].get_segments()[0][:, 0].tolist() for bars in axes.containers]
    assert ends == [pytest.approx([-0.42, 0.38]), pytest.approx([-0.04, 0.0])]


def test_all_questions_are_counted_and_both_thresholds_are_drawn():
    (axes,) = measuring.label_bias({"yes": [-3.0, -2.0, -2.5], "no": [-4.0]}, -2.25).axes
    assert [sum(bar.get_height() for bar in bars) for bars in axes.containers] == [3, 1]
    assert [line.get_xdata()[0] for line in axes.lines] == [0, -2.25]


def test_retention_is_drawn_in_percent_with_one_error():
    (axes,) = measuring.retained(["one", "two"], [0.9, 0.8], [(0.6, 0.1), (-0.2, 0.3)]).axes
    plain, above, bars = axes.containers
    assert [bar.get_height() for bar in plain] == [90, 80]
    assert [bar.get_height() for bar in above] == [60, -20]
    assert [segment[:, 1].tolist() for segment in bars[2][0].get_segments()] == [[50, 70], pytest.approx([-50, 10])]
