import matplotlib.pyplot as plt

from modegpt.style import show


def test_a_picture_carries_its_alt_text_and_closes_the_figure():
    picture = show(plt.figure(figsize=(1, 1)), 'A "curve" < 1')
    shown = picture._repr_html_()
    assert 'alt="A &quot;curve&quot; &lt; 1"' in shown and "data:image/png;base64,iVBOR" in shown
    assert plt.get_fignums() == []
