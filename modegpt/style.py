"""One look for all pictures, and how a notebook shows one."""

import base64
import html
import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from modegpt.files import MARK

# The hues of Okabe and Ito, safe for colour-blind readers, dark enough to be seen on white: 4.5 to 1 and more as text,
# 3 to 1 those that only lines and areas have
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#BF5300", "#007F5C", "#AF578A", "#767676"
YELLOW, SKY = "#B58200", "#3F97CE"
# so that no line is told from another by its colour alone
MARKER = {BLUE: "o", ORANGE: "s", GREEN: "^", PINK: "D", YELLOW: "v", SKY: "P", GREY: "X", "black": "*"}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 120,
    "figure.facecolor": "white",  # also on a dark page
    "figure.constrained_layout.use": True,
}
WIDTH, HEIGHT = 9.0, 4.2  # inches, of one panel or of a row of them


def style() -> AbstractContextManager[Any]:
    """`with style(): plt.subplots(...)` gives the kit's look."""
    import matplotlib.pyplot as plt

    return plt.rc_context(STYLE)


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Round numbers inside the range of the data, written out; few enough to be read."""
    low, high = min(values), max(values)
    decades = math.log10(high / low)
    fine = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    steps = (
        fine
        if decades < 0.5
        else (1, 2, 3, 5, 7)
        if decades < 0.8
        else (1, 2, 3, 5)
        if decades < 1.5
        else (1, 3)
        if decades < 3
        else (1,)
    )
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10**power for power in powers for step in steps if low / 1.3 <= step * 10**power <= high * 1.3]
    axes.set_yticks(ticks, [f"{tick:,g}" if tick < 1e5 else f"{tick:.0e}" for tick in ticks])
    axes.minorticks_off()


def keep(figure: Figure, file: Path) -> None:
    """Write a PNG, with our mark, and let go of the figure: pyplot holds on to every one that is not closed."""
    import matplotlib.pyplot as plt

    figure.savefig(file, metadata={"Software": MARK})
    plt.close(figure)


class Picture:
    """A figure as a notebook cell shows it: a PNG whose alt text survives JupyterLab and nbconvert."""

    def __init__(self, figure: Figure, alt: str) -> None:
        import matplotlib.pyplot as plt

        drawn, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=90)
        plt.close(figure)
        with Image.open(drawn) as image:  # 256 colours: a third of the bytes, and no eye tells them apart
            image.convert("RGB").quantize(256).save(packed, "png", optimize=True)
        self.png, self.alt = packed.getvalue(), alt

    def __repr__(self) -> str:
        return f"<Picture: {self.alt}>"

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png).decode()
        return f'<img style="max-width:100%" alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'


def show(figure: Figure, alt: str) -> Picture:
    """The last line of a cell: shows `figure`, with a sentence for readers who cannot see it."""
    return Picture(figure, alt)
