"""Checks of notebook 09: a strided window, a difference with two errors, shared runs of words, what lies above guessing."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.check.verdict import answer, expect, near, number, passed

TEXTS = (  # calibration, evaluation
    (
        "It rained all night in the old town.\nThe river rose, and the bridge was closed.",
        "The river rose and the bridge was closed. It rained all night in the OLD town, they say.\nIt rained all night.",
    ),
    ("one two three four five six", "nine, one two three!\nfour five six seven two three four; two three four"),
    ("a bell rang " * 3, "nobody heard that a bell rang a bell rang and rang"),
)


def strided_losses(function: Callable) -> None:
    """Exercise 09.1: `strided_losses(losses_of, ids, length, stride)` -> the loss of every token but the first, once.

    `losses_of` gives, for a window (n,) of ids, the losses (n - 1,) of all but its first token. Here it tells which
    token it was asked for, and with how many tokens before it.

    Raises:
        NotYet: naming tokens scored twice or not at all, or with another context than a strided window gives.
    """
    for count, length, stride in ((23, 8, 4), (40, 10, 3), (12, 6, 5), (7, 9, 2), (9, 4, 1), (21, 10, 5)):
        ids = torch.randperm(count, generator=torch.Generator().manual_seed(count)) + 1
        longest, given = [0], {0.0}

        def losses_of(window: Tensor, longest: list[int] = longest, given: set[float] = given) -> Tensor:
            losses = 1000.0 * window[1:].double() + torch.arange(1, len(window))
            longest.append(len(window))
            given.update(losses.tolist())
            return losses

        found = answer(function, losses_of, ids.clone(), length, stride)
        case = f"{count} tokens, windows of {length}, stride {stride}"
        expect(isinstance(found, Tensor) and found.ndim == 1, "return one tensor of losses, (tokens - 1,)")
        expect(max(longest) <= length, f"{case}: a window had {max(longest)} tokens")
        expect(set(found.tolist()) <= given, "return the losses just as losses_of gave them")
        token, context = (found // 1000).long().tolist(), (found % 1000).long().tolist()
        missing = count - 1 - len(set(token))
        expect(
            len(set(token)) == len(token),
            f"{case}: {len(found)} losses for {count - 1} predicted tokens: where windows overlap, tokens count twice",
        )
        expect(
            not missing or token == ids[1 : len(token) + 1].tolist(),
            f"{case}: {missing} tokens have no loss: a token that begins a window is predicted in the one before",
        )
        expect(not missing, f"{case}: the last {missing} tokens have no loss: the last window may be shorter")
        expect(token == ids[1:].tolist(), f"{case}: the losses are not in the order of the tokens")
        start = [max(0, -((length - 1 - t) // stride)) * stride for t in range(1, count)]  # of the first that holds t
        best = [t - begin for t, begin in enumerate(start, 1)]
        short = [(t, got, most) for t, (got, most) in enumerate(zip(context, best, strict=True), 1) if got < most]
        expect(
            not short,
            f"{case}: token {short[0][0]} is scored with {short[0][1]} tokens before it, an earlier window that holds "
            f"it gives {short[0][2]}"
            if short
            else "",
        )
        expect(context == best, f"{case}: windows start at 0, {stride}, {2 * stride}, ..., yours gave other contexts")
    passed("every token is scored once, where it has the longest context")


def difference(function: Callable) -> None:
    """Exercise 09.2: `difference(first, second)` of losses (draws, windows) -> mean, error over windows, over draws.

    Raises:
        NotYet: naming the pairing, the number of independent things or the divisor that is wrong.
    """
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for draws, windows in ((4, 9), (6, 5)):
        hard, luck = normal(1, windows), 0.2 * normal(draws, 1)
        first = 3 + hard + luck + 0.02 * normal(draws, windows)
        second = 3.1 + 1.1 * hard + 0.7 * luck + 0.03 * normal(draws, windows)
        delta = second - first
        found = answer(function, first.clone(), second.clone())
        expect(
            isinstance(found, tuple | list) and len(found) == 3,
            "return three numbers: the difference, its error over windows, and over draws",
        )
        mean, over_windows, over_draws = (
            number(value, what)
            for value, what in zip(found, ("the difference", "the error over windows", "the error over draws"))
        )
        right = delta.mean().item()
        expect(not near(mean, -right), "the difference is turned around: second minus first")
        expect(not near(mean, right * draws) and not near(mean, right * windows), "that is a sum, not a mean")
        expect(near(mean, right), f"the mean difference of this case is {right:.4f}, yours is {mean:.4f}")
        by_window, by_draw = delta.mean(0), delta.mean(1)
        targets = (by_window.std() / windows**0.5).item(), (by_draw.std() / draws**0.5).item()
        expect(
            not (near(over_windows, targets[1]) and near(over_draws, targets[0])),
            "the two errors are swapped: over windows, then over draws",
        )
        for got, target, values, axis, name in (
            (over_windows, targets[0], by_window, 0, "windows"),
            (over_draws, targets[1], by_draw, 1, "draws"),
        ):
            n, each = len(values), [method.mean(axis) for method in (first, second)]
            unpaired = ((each[0].var() + each[1].var()) / n).sqrt().item()
            mistakes = {
                (delta.std() / delta.numel() ** 0.5).item(): f"{delta.numel()} entries are no {delta.numel()} "
                f"independent ones: take the mean over the other axis first, {n} {name} are left",
                (delta.std(axis).mean() / n**0.5).item(): "take the mean over the other axis first, then the spread",
                unpaired: f"that is the error of two separate samples: both methods had the same {name}",
                values.std().item(): f"that is the spread of single {name}: their mean varies less, by sqrt({n})",
                values.var().item() / n: "that is the variance of the mean: its root is missing",
                (
                    values.std(correction=0) / n**0.5
                ).item(): f"the {name} are a sample: divide the squares by {n - 1}, not by {n}",
                (values.std() / delta.numel() ** 0.5).item(): f"there are {n} {name}, not {delta.numel()}",
            }
            for value, message in mistakes.items():
                expect(not near(got, value), message)
            expect(near(got, target), f"the error over {name} of this case is {target:.4f}, yours is {got:.4f}")
    passed("in pairs, and every source of chance with its own number of cases")


def shared_share(function: Callable) -> None:
    """Exercise 09.3: `shared_share(calibration, evaluation, words)` -> share of the evaluation's runs of words.

    Raises:
        NotYet: naming case, punctuation, lines, or the runs that were counted wrongly.
    """
    for words, (calibration, evaluation) in zip((4, 3, 3), TEXTS, strict=True):
        got = number(answer(function, calibration, evaluation, words), "the share")
        known, runs = _runs(calibration, words), _runs(evaluation, words)
        right = _share(known, runs)
        mistakes = {
            _share(*(_runs(text, words, lower=False) for text in (calibration, evaluation))): "upper and lower case "
            "differ there: compare in lower case",
            _share(*(_runs(text, words, pattern=r"\S+") for text in (calibration, evaluation))): "a comma or a full "
            "stop hides a run: compare words without punctuation",
            _share(*(_runs(text, words, lines=False) for text in (calibration, evaluation))): "a run does not go on in "
            "the next line",
            _share(*(_runs(text, words, lines=False) for text in (calibration, evaluation)), once=True): "a run does "
            "not go on in the next line",
            _share(known, runs, once=True): "count every run of the evaluation text, also those that come again",
            _share(runs, known): "that is the share of the calibration text: how much of the *evaluation* is known?",
            float(sum(run in known for run in runs)): "that is a number of runs: divide by all runs of the evaluation",
            sum(run in known for run in runs) / len(known): "divide by the runs of the evaluation, not of the other",
            _share(*(_runs(text, words - 1) for text in (calibration, evaluation))): "those runs are a word too short",
            _share(*(_runs(text, words + 1) for text in (calibration, evaluation))): "those runs are a word too long",
            _share(*(_runs(text, 1) for text in (calibration, evaluation))): "that counts single words, not runs",
            100 * right: "a share lies between 0 and 1",
        }
        mistakes = {value: message for value, message in mistakes.items() if not near(value, right)}
        for value, message in mistakes.items():
            expect(not near(got, value), message)
        expect(near(got, right), f"for {evaluation!r} the share is {right:.4f}, yours is {got:.4f}")
    got = number(answer(function, TEXTS[0][0], "too short a text", 13), "the share of a text without runs")
    expect(got == 0, "a text shorter than a run shares nothing: return 0")
    passed("held out is what can be counted, not what was meant")


def kept_above_guessing(function: Callable) -> None:
    """Exercise 09.4: `kept_above_guessing(dense, small, guessing, questions)`, (tasks,) each -> share kept, its error.

    Raises:
        NotYet: naming the level that was not taken off, or the part of the error that is missing.
    """
    cases = (
        ([0.52, 0.61, 0.70, 0.43], [0.44, 0.58, 0.61, 0.36], [0.25, 0.5, 0.5, 0.25], [900, 400, 1500, 2400]),
        ([0.80, 0.47], [0.62, 0.43], [0.5, 0.25], [150, 3000]),
    )
    for case in cases:
        dense, small, guessing, questions = (torch.tensor(row, dtype=torch.float64) for row in case)
        given = (dense.clone(), small.clone(), guessing.clone(), questions.clone())
        found = answer(function, *given)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two numbers: the share and its error")
        kept, error = number(found[0], "the share kept"), number(found[1], "the error")
        above = (dense - guessing).mean()
        right = ((small - guessing).mean() / above).item()
        mistakes = {
            (small.mean() / dense.mean()).item(): "that is the plain retention: take off what guessing gives, from both",
            ((small - guessing) / (dense - guessing)).mean().item(): "that is a mean of the tasks' shares, in which a "
            "task near guessing counts most: the means come first, then one division",
            ((small - guessing).mean() / dense.mean()).item(): "take off the guessing level from the dense model, too",
            (small.mean() / above).item(): "take off the guessing level from the small model, too",
            (small - guessing).mean().item(): "that is how far the small model lies above guessing: of how much?",
            1 - right: "that is the share lost",
            1 / right: "the share is turned around: small above dense",
            (((small - guessing) * questions).sum() / ((dense - guessing) * questions).sum()).item(): "every task "
            "counts the same here, however many questions it has",
            ((small.mean() - 0.5) / (dense.mean() - 0.5)).item(): "the tasks differ in their guessing level",
        }
        for value, message in mistakes.items():
            expect(not near(kept, value), message)
        expect(near(kept, right), f"the share kept of this case is {right:.4f}, yours is {kept:.4f}")

        def of_mean(accuracy: Tensor, questions: Tensor = questions, less: int = 1) -> float:
            variances = accuracy * (1 - accuracy) / (questions - less)
            return (variances.sum().sqrt() / len(questions)).item()

        a, b, level = of_mean(small), of_mean(dense), above.item()
        target = (a**2 + right**2 * b**2) ** 0.5 / level
        pooled = [(x.mean() * (1 - x.mean()) / questions.sum()).sqrt().item() for x in (small, dense)]
        mistakes = {
            a / level: "the dense model's accuracy has an error as well",
            (a**2 + b**2) ** 0.5 / level: "a change of the dense accuracy changes the share by `kept` times as much: "
            "differentiate the quotient",
            (a**2 + b**2) ** 0.5: "that is the error of the difference of the two means: divide by what it is a share of",
            (a + right * b) / level: "independent errors add in squares, not as they are",
            target**2: "that is a variance: its root is missing",
            target * len(questions) ** 0.5: "the mean of T tasks: the root of the summed variances, divided by T",
            target * len(questions): "that is the error of the sum over tasks: divide by their number",
            (pooled[0] ** 2 + right**2 * pooled[1] ** 2) ** 0.5 / level: "that pools the questions of all tasks: each "
            "task has its own error, and their mean has the root of the summed squares over T",
        }
        for value, message in mistakes.items():
            expect(not near(error, value, 1e-3), message)
        expect(
            near(error, target, 1e-2),
            f"the standard error of this case is {target:.4f}, yours is {error:.4f}",
        )
    passed("what guessing gives is nobody's merit, and a quotient has the errors of both its parts")


def _runs(text: str, words: int, *, lower: bool = True, lines: bool = True, pattern: str = r"\w+") -> list[tuple]:
    """Runs of so many words of a text, each line by itself."""
    text = text.lower() if lower else text
    parts = [re.findall(pattern, line) for line in (text.split("\n") if lines else [text])]
    return [tuple(part[i : i + words]) for part in parts for i in range(len(part) - words + 1)]


def _share(known: list[tuple], runs: list[tuple], *, once: bool = False) -> float:
    runs = list(dict.fromkeys(runs)) if once else runs
    return sum(run in known for run in runs) / len(runs) if runs else 0.0
