from modegpt.course.figures import use_it as figures


def test_every_station_is_at_its_size_and_perplexity_with_its_speed():
    stations = {"dense": (538.0, 20.0, 50.0), "small": (400.0, 40.0, None), "dense, Q8_0": (110.0, 40.5, 90.0)}
    (axes,) = figures.road(stations).axes
    road, quantized, *points = axes.get_lines()
    assert list(road.get_xdata()) == [538, 400] and list(road.get_ydata()) == [20, 40]
    assert list(quantized.get_xdata()) == [538, 110] and list(quantized.get_ydata()) == [20, 40.5]
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [(538, 20), (400, 40), (110, 40.5)]
    assert [text.get_text() for text in axes.texts] == ["dense: 50 tokens/s", "small", "dense, Q8_0: 90 tokens/s"]
    assert "MB" in axes.get_xlabel() and axes.get_ylabel() == "perplexity"
