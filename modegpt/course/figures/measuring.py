"""The pictures of notebook 09: protocols, context, texts, errors of a difference, labels, what lies above guessing."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, ORANGE, PINK, SKY, WIDTH, log_ticks, style


def protocols(by_protocol: Mapping[str, tuple[float, float]]) -> Figure:
    """Perplexity of the dense and the small model under each protocol, with how many times it grew.

    Args:
        by_protocol: name of the protocol -> perplexity of the dense model, of the small one.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        for place, (dense, small) in enumerate(by_protocol.values()):
            axes.plot([place, place], [dense, small], color=GREY, lw=1.2, zorder=1)
            axes.plot(place, dense, "o", color=BLUE, markersize=8, label=None if place else "dense")
            axes.plot(place, small, "s", color=ORANGE, markersize=8, label=None if place else "compressed")
            beside = {"textcoords": "offset points", "va": "center"}
            for value in (dense, small):
                words = f"{value:.1f}" if value < 100 else f"{value:.0f}"
                axes.annotate(words, (place, value), xytext=(9, 0), **beside)
            middle = (place, (dense * small) ** 0.5)
            axes.annotate(f"x {small / dense:.2f}", middle, xytext=(9, 0), color=GREY, size=10, **beside)
        axes.set_yscale("log")
        log_ticks(axes, [value for pair in by_protocol.values() for value in pair])
        axes.set_xticks(range(len(by_protocol)), list(by_protocol))
        axes.margins(x=0.15, y=0.12)
        axes.legend(loc="upper left")
        axes.set_ylabel("perplexity (log scale)")
        axes.set_title("One model, one text, four protocols, four numbers")
    return figure


def context_cost(edges: Sequence[int], extra: Mapping[str, Sequence[float]]) -> Figure:
    """By how much the loss of a token falls when a short window becomes a long one, by its place in the short one.

    Args:
        edges: of the buckets of tokens that the short window offers as context, ascending; one more than buckets.
        extra: name of a model -> nats per token that the short window costs, of every bucket.
    """
    import matplotlib.pyplot as plt

    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.75 * HEIGHT))
        axes.axhline(0, color=GREY, lw=1)
        for (name, values), color, mark in zip(extra.items(), (BLUE, ORANGE), ("o", "s"), strict=False):
            axes.plot(middles, values, mark + "-", color=color, label=name)
        axes.legend()
        axes.set_xticks(edges)
        axes.set_xlabel("tokens before it in the short window")
        axes.set_ylabel("extra loss (nats per token)")
        axes.set_title("What a token pays for a short window")
    return figure


def texts(by_calibration: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Perplexity on several texts after calibration on several others; a point for every draw.

    Args:
        by_calibration: calibration text -> evaluation text -> perplexities, one for each draw of the windows.
    """
    import matplotlib.pyplot as plt

    names = list(next(iter(by_calibration.values())))
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.85 * HEIGHT))
        looks = zip(by_calibration.items(), (BLUE, ORANGE, GREEN), ("o", "s", "^"), strict=False)
        for (calibration, found), color, mark in looks:
            means = [sum(found[name]) / len(found[name]) for name in names]
            axes.plot(range(len(names)), means, "-", color=color, lw=1, alpha=0.6)
            for place, name in enumerate(names):
                label = None if place else calibration
                axes.plot([place] * len(found[name]), found[name], mark, color=color, markersize=6, label=label)
        every = [value for found in by_calibration.values() for values in found.values() for value in values]
        axes.set_yscale("log")
        log_ticks(axes, every)
        axes.set_xticks(range(len(names)), names)
        axes.margins(x=0.12, y=0.1)
        axes.legend(title="calibrated on", loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_xlabel("evaluated on")
        axes.set_ylabel("perplexity (log scale)")
        axes.set_title("No calibration text is the best for all")
    return figure


def errors_of_a_difference(difference: float, errors: Mapping[str, float]) -> Figure:
    """One difference of two models with several standard errors, each drawn two of them wide.

    Args:
        difference: of the mean losses, nats per token.
        errors: what the error was taken over -> standard error.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.6 * HEIGHT))
        axes.axvline(0, color=GREY, lw=1)
        for place, (error, color) in enumerate(zip(errors.values(), (ORANGE, BLUE, GREEN, PINK), strict=False)):
            axes.errorbar(difference, place, xerr=2 * error, fmt="o", color=color, capsize=5, markersize=7)
        axes.set_yticks(range(len(errors)), list(errors))
        axes.invert_yaxis()
        axes.margins(y=0.25)
        axes.set_xlabel("difference of the losses (nats per token), with two standard errors")
        axes.set_title("The same difference, with the error it has and with others")
    return figure


def label_bias(log_odds: Mapping[str, Sequence[float]], prior: float) -> Figure:
    """How much likelier than "no" a model finds "yes", for the questions of either right answer.

    Args:
        log_odds: right answer -> log p(yes) - log p(no) of each question with that answer.
        prior: where a threshold would have to lie for as many "yes" as "no".
    """
    import matplotlib.pyplot as plt

    every = [value for values in log_odds.values() for value in values]
    low, high = min([*every, 0]), max([*every, 0])
    edges = [low + (high - low) * i / 24 for i in range(25)]
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.75 * HEIGHT))
        for (answer, values), color in zip(log_odds.items(), (BLUE, ORANGE), strict=False):
            axes.hist(values, edges, color=color, alpha=0.6, label=f"the right answer is {answer}")
        axes.axvline(0, color=GREY, lw=2)
        axes.axvline(prior, color=GREY, lw=1.5, ls="--")
        top = 1.4 * axes.get_ylim()[1]  # room for words above the bars
        axes.set_ylim(0, top)
        for at, words in ((0, 'left of this\nit says "no" '), (prior, "its own middle ")):
            axes.annotate(words, (at, top), ha="right", va="top", color=GREY, size=10)
        axes.legend(loc="upper left")
        axes.set_xlabel("log p(yes) - log p(no)")
        axes.set_ylabel("questions")
        axes.set_title("A constant answer, whatever the question")
    return figure


def retained(tasks: Sequence[str], plain: Sequence[float], above: Sequence[tuple[float, float]]) -> Figure:
    """What a small model keeps of the accuracy of each task, and of what lies above guessing.

    Args:
        tasks: their names.
        plain: small accuracy / dense accuracy of each.
        above: the same with the guessing level taken off both, and its standard error.
    """
    import matplotlib.pyplot as plt

    places = range(len(tasks))
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        beside, shares = [i + 0.2 for i in places], [100 * share for share, _ in above]
        axes.bar([i - 0.2 for i in places], [100 * share for share in plain], 0.36, color=SKY, label="of the accuracy")
        axes.bar(beside, shares, 0.36, color=BLUE, label="of what lies above guessing")
        bars = {"fmt": "none", "ecolor": ORANGE, "capsize": 4, "label": "one standard error"}
        axes.errorbar(beside, shares, yerr=[100 * error for _, error in above], **bars)
        axes.axhline(100, color=GREY, lw=1, ls=":")
        axes.axhline(0, color=GREY, lw=1)
        axes.set_xticks(places, tasks)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
        axes.set_ylabel("kept (%)")
        axes.set_title("Retention counts what nobody had to keep")
    return figure
