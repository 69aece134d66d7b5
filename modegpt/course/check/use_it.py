"""Checks of notebook 14: the width that a ratio leaves, what padding leaves of a saving, one choice for all heads."""

from collections.abc import Callable

import torch

from modegpt.course.check.verdict import answer, expect, near, number, passed


def stock_width(function: Callable) -> None:
    """Exercise 14.1: `stock_width(ratio, heads, cost, channels, unit)` -> the one MLP width of all layers.

    Raises:
        NotYet: naming heads that were forgotten, a width that is no multiple, or rounding to the wrong side.
    """
    for ratio, heads, cost, channels, unit in ((0.3, 885, 3, 900, 10), (0.2, 400, 2, 640, 16), (0.0, 100, 3, 96, 8)):
        found = number(answer(function, ratio, heads, cost, channels, unit), "the width")
        exact = ((1 - ratio) * (heads + cost * channels) - heads) / cost
        right = unit * round(exact / unit)
        naive = unit * round((1 - ratio) * channels / unit)
        expect(
            found != naive or naive == right,
            "that takes the ratio of the MLP alone: the heads stay whole, so the MLP pays for them too",
        )
        expect(found % unit == 0, f"{found:g} is no multiple of {unit}")
        expect(found <= channels, f"{found:g} channels are more than the {channels} that there are")
        sides = {unit * (exact // unit), unit * -(-exact // unit)}
        expect(found not in sides or found == right, "of the two multiples around the exact width take the nearer one")
        expect(found == right, f"removing {ratio:.0%} of {heads + cost * channels} parameters leaves {right} channels")
    try:
        function(0.8, 885, 3, 900, 10)
    except ValueError:
        pass
    except NotImplementedError:
        answer(function, 0.8, 885, 3, 900, 10)
    else:
        expect(False, "the MLP has 75 % of these parameters, so a ratio of 80 % is a ValueError")
    passed("heads whole, one width, and a ratio that the MLP cannot bear is refused")


def saved_after_padding(function: Callable) -> None:
    """Exercise 14.2: `saved_after_padding(ranks, dense, cost)`, (layers, 3), (3,), (3,) -> share that stays saved.

    Raises:
        NotYet: naming what was not padded, or padded too far.
    """
    dense, cost = torch.tensor([64, 64, 1536]), torch.tensor([6912, 6912, 1728])
    for ranks in ([[48, 56, 1200], [32, 64, 800], [64, 40, 1000]], [[64, 64, 928]] * 3, [[16, 24, 512], [24, 16, 512]]):
        ranks = torch.tensor(ranks)
        found = number(answer(function, ranks, dense, cost), "the share")
        widest = ranks.clone()
        widest[:, :2], widest[:, 2] = dense[:2], ranks[:, 2].max()
        own_width = ranks.clone()
        own_width[:, :2] = dense[:2]

        def share(sizes: torch.Tensor, layers: int = len(ranks)) -> float:
            return 1 - float((sizes * cost).sum()) / float(layers * (dense * cost).sum())

        mistakes = (
            (ranks, "that is what was saved before padding"),
            (own_width, "a plain model has one MLP width for all layers: pad to the widest"),
            (ranks.amax(0).expand_as(ranks), "a plain model's heads have their old size: pad them to the dense dims"),
            (dense.expand_as(ranks), "that pads the MLPs to the dense width: the widest layer's is enough"),
        )
        right = share(widest)
        for sizes, message in mistakes:
            expect(near(share(sizes), right, 1e-9) or not near(found, share(sizes), 1e-6), message)
        expect(not near(found, 1 - right, 1e-6) or near(right, 0.5, 1e-9), "that is the share that is left, not saved")
        expect(near(found, right, 1e-6), "compare the padded parameters of all layers with the dense ones")
    passed("heads are padded to their old size and MLPs to the widest, whatever was saved")


def one_choice(function: Callable) -> None:
    """Exercise 14.3: `one_choice(scores, k)`, (heads, pairs) -> shares of the score kept: each head's own, one for all.

    Raises:
        NotYet: naming one number in place of two, or pairs chosen by one head or by the loudest.
    """
    draw = torch.Generator().manual_seed(0)
    for heads, pairs, k in ((3, 8, 4), (5, 16, 4), (1, 6, 2)):
        scores = torch.rand(heads, pairs, generator=draw, dtype=torch.float64) ** 6
        scores *= torch.logspace(0, 2, heads, dtype=torch.float64).flip(0)[:, None]
        found = answer(function, scores, k)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two numbers: own choice, one choice")
        own, one = (number(value, name) for value, name in zip(found, ("the first", "the second"), strict=True))
        total = scores.sum()

        def kept(chosen: torch.Tensor, scores: torch.Tensor = scores, total: torch.Tensor = total) -> float:
            return float(scores[:, chosen].sum() / total)

        right_own = float(scores.topk(k).values.sum() / total)
        right_one = kept(scores.sum(0).topk(k).indices)
        by_share = float((scores.topk(k).values.sum(1) / scores.sum(1)).mean())
        expect(near(own, right_own) or not near(own, by_share), "that is a mean of shares: add up scores, then divide")
        expect(near(own, right_own), "each head keeps its own k best pairs; the share is of all heads' scores")
        expect(
            near(one, right_one) or not near(one, right_own),
            "the second is for one choice: the same k pairs in every head",
        )
        for other, message in (
            (scores[0].topk(k).indices, "the first head chose for all: add the heads' scores up before you choose"),
            (scores[-1].topk(k).indices, "the last head chose for all: add the heads' scores up before you choose"),
            ((scores / scores.sum(1, keepdim=True)).sum(0).topk(k).indices, "choose by scores, not by shares"),
            (torch.arange(k), "the first pairs are not the best ones: choose by the score"),
        ):
            expect(near(kept(other), right_one) or not near(one, kept(other)), message)
        expect(near(one, right_one), "one choice keeps the k pairs whose scores, over all heads, add up to most")
    passed("one choice for all heads keeps less, as they listen to different pairs")
