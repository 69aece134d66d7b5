import matplotlib.pyplot as plt
import pytest

from modegpt.style import BLUE, GREEN, GREY, MARKER, ORANGE, PINK, SKY, YELLOW, show


def test_a_picture_carries_its_alt_text_and_closes_the_figure():
    picture = show(plt.figure(figsize=(1, 1)), 'A "curve" < 1')
    shown = picture._repr_html_()
    assert 'alt="A &quot;curve&quot; &lt; 1"' in shown and "data:image/png;base64,iVBOR" in shown
    assert plt.get_fignums() == []


def contrast(color: str) -> float:
    """To white, as WCAG 2.2 defines it."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


@pytest.mark.parametrize(("colors", "least"), [((BLUE, ORANGE, GREEN, PINK, GREY), 4.5), ((YELLOW, SKY), 3)])
def test_colors_can_be_seen_on_white_and_have_markers_of_their_own(colors, least):
    assert min(map(contrast, colors)) >= least
    assert len(set(MARKER.values())) == len(MARKER) and set(colors) <= set(MARKER)
