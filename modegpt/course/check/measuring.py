"""Checks of notebook 09: a strided window, bits per byte in pairs, shared runs of words, what lies above guessing."""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, expect, near, number, passed

TEXTS = (  # length of a run, calibration, evaluation
    (  # every likely mistake gives another share here
        3,
        "Breathe the cold air. In 1969 the café was\nbuilt again, said Zoë.",
        "now he cold air\nThe cold air, the café was built again, said Zoë. In 1969 the cat was; the café, was built "
        "again, said Zoé, he cold air, he cold air",
    ),
    (
        4,
        "It rained all night in the old town.\nThe river rose, and the bridge was closed.",
        "The river rose and the bridge was closed. It rained all night in the OLD town, they say.\n"
        "It rained all night.",
    ),
    (3, "one two three four five six", "nine, one two three!\nfour five six seven two three four; two three four"),
    (3, "a bell rang " * 3, "nobody heard that a bell rang a bell rang and rang"),
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

        found = answer(function, losses_of, ids, length, stride)
        case = f"{count} tokens, windows of {length}, stride {stride}"
        expect(isinstance(found, Tensor) and found.ndim == 1, "return one tensor of losses, (tokens - 1,)")
        expect(max(longest) <= length, f"{case}: a window had {max(longest)} tokens")
        expect(set(found.tolist()) <= given, "return the losses just as losses_of gave them")
        token, context = (found // 1000).long().tolist(), (found % 1000).long().tolist()
        token = [t for t in token if t]  # zero: a place that was left empty
        missing = count - 1 - len(set(token))
        expect(
            len(set(token)) == len(token),
            f"{case}: {len(token)} losses for {count - 1} predicted tokens: where windows overlap, tokens count twice",
        )
        expect(
            not missing or token == ids[1 : len(token) + 1].tolist(),
            f"{case}: {missing} tokens have no loss: a token that begins a window is predicted in the one before",
        )
        expect(
            missing or len(found) == count - 1,
            f"{case}: {len(found)} losses for {count - 1} predicted tokens: nothing predicts the first",
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


def bits_per_byte(function: Callable) -> None:
    """Exercise 09.2: `bits_per_byte(first, second, sizes)` -> difference of two models, its standard error in pairs.

    `first` and `second` are the summed losses (documents,) in nats, `sizes` (documents,) the bytes.

    Raises:
        NotYet: naming the unit, the mean or the pairing that is wrong.
    """
    generator = torch.Generator().manual_seed(3)
    for count in (6, 15):
        sizes = torch.randint(200, 3000, (count,), generator=generator).double()
        noise = torch.randn(3, count, generator=generator, dtype=torch.float64) * sizes**0.75
        first = sizes + noise[0]
        second = first + 0.12 * sizes + 0.1 * noise[1]
        found = answer(function, first, second, sizes)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two numbers: the difference and its error")
        rate, error = number(found[0], "the difference"), number(found[1], "the error")
        bits, total = (second - first) / math.log(2), sizes.sum()
        right = (bits.sum() / total).item()
        mistakes = {
            right * math.log(2): "that is in nats: a bit is log(2) of them",
            right * math.log(2) ** 2: "that multiplies by log(2): a nat is more than a bit",
            -right: "the difference is turned around: second minus first",
            (bits / sizes).mean().item(): "that averages the documents' own rates, so a short one counts as much as a "
            "long one: all bits over all bytes",
            bits.mean().item(): "that is bits per document: divide by the bytes",
            (second.sum() / first.sum()).item(): "that is a ratio: the difference is asked for",
            (second.sum() / math.log(2) / total).item(): "that is the second model alone",
        }
        for value, message in mistakes.items():
            expect(not near(rate, value), message)
        expect(near(rate, right), f"the difference of this case is {right:.5f}, yours is {rate:.5f}")

        def of(rest: Tensor, total: Tensor = total, count: int = count) -> float:
            return ((rest.square().sum() * count / (count - 1)).sqrt() / total).item()

        rest, each = bits - right * sizes, [x / math.log(2) for x in (first, second)]
        alone = [of(x - x.sum() / total * sizes) for x in each]
        target = of(rest)
        mistakes = {
            target * math.log(2): "the error is in nats, the difference in bits",
            math.hypot(*alone): "that is the error of two separate samples: both models read the same documents",
            of(bits - bits.mean()): "a long document differs by more because it is long: take off rate x size, not the "
            "mean",
            ((bits / sizes).std() / count**0.5).item(): "that is the error of a mean of the documents' own rates",
            target * (1 - 1 / count) ** 0.5: f"the documents are a sample: divide the squares by {count - 1}, not by "
            f"{count}",
            target * count**0.5: "that is the spread of single documents: the mean varies less",
            target**2: "that is a variance: its root is missing",
            target * total.item(): "that is the error of the bits in all: divide by the bytes",
        }
        for value, message in mistakes.items():
            expect(not near(error, value), message)
        expect(near(error, target), f"the standard error of this case is {target:.5f}, yours is {error:.5f}")
    passed("bytes are the same for every tokenizer, and every document is its own control")


def shared_share(function: Callable) -> None:
    """Exercise 09.3: `shared_share(calibration, evaluation, words)` -> share of the evaluation's runs of words.

    Raises:
        NotYet: naming case, punctuation, lines, or the runs that were counted wrongly.
    """
    for words, calibration, evaluation in TEXTS:
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
            _share(_runs(calibration, words, lines=False), runs): "a run does not go on in the next line, in the "
            "calibration text neither",
            _share(*(_runs(text, words, pattern="[a-z]+") for text in (calibration, evaluation))): _WORD,
            _share(*(_runs(text, words, pattern="[a-z0-9]+") for text in (calibration, evaluation))): _WORD,
            _inside(calibration, runs): "words are compared whole: breathe ends with the, and is another word",
            _share(*(_runs(text, words, tails=True) for text in (calibration, evaluation))): "the last words of a line "
            "are too few for a run",
            _share(
                *([r[:words] for r in _runs(text, words + 1)] for text in (calibration, evaluation))
            ): "the last run of a line is missing",
            len(set(known) & set(runs)) / len(set(known) | set(runs)): "divide by the runs of the evaluation alone",
            _share(known, runs[::words]): "runs overlap: one begins with every word",
            _by_line(known, evaluation, words): "that is a mean of the lines' shares: count the runs of all lines",
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
    got = number(answer(function, TEXTS[0][1], "too short a text", 13), "the share of a text without runs")
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
        ([0.31, 0.66, 0.47], [0.21, 0.58, 0.36], [0.25, 0.5, 0.25], [1200, 800, 2000]),  # one task below guessing
        ([0.29, 0.56], [0.23, 0.49], [0.25, 0.5], [1100, 1500]),  # and all of them
    )
    for case in cases:
        dense, small, guessing, questions = (torch.tensor(row, dtype=torch.float64) for row in case)
        given = (dense, small, guessing, questions)
        found = answer(function, *given)
        expect(isinstance(found, tuple | list) and len(found) == 2, "return two numbers: the share and its error")
        kept, error = number(found[0], "the share kept"), number(found[1], "the error")
        above = (dense - guessing).mean()
        right = ((small - guessing).mean() / above).item()
        mistakes = {
            (small.mean() / dense.mean()).item(): "that is the plain retention: take off both what guessing gives",
            ((small - guessing) / (dense - guessing)).mean().item(): "that is a mean of the tasks' shares, in which a "
            "task near guessing counts most: the means come first, then one division",
            ((small - guessing).mean() / dense.mean()).item(): "take off the guessing level from the dense model, too",
            (small.mean() / above).item(): "take off the guessing level from the small model, too",
            (small - guessing).mean().item(): "that is how far the small model lies above guessing: of how much?",
            (
                (small - guessing).clamp(min=0).mean() / above
            ).item(): "a task below guessing counts as it is, below zero",
            1 - right: "that is the share lost",
            1 / right: "the share is turned around: small above dense",
            (((small - guessing) * questions).sum() / ((dense - guessing) * questions).sum()).item(): "every task "
            "counts the same here, however many questions it has",
            ((small.mean() - 0.5) / (dense.mean() - 0.5)).item(): "the tasks differ in their guessing level",
        }
        for value, message in mistakes.items():
            expect(near(value, right) or not near(kept, value), message)
        expect(near(kept, right), f"the share kept of this case is {right:.4f}, yours is {kept:.4f}")

        def of_mean(accuracy: Tensor, questions: Tensor = questions, less: int = 1) -> float:
            variances = accuracy * (1 - accuracy) / (questions - less)
            return (variances.sum().sqrt() / len(questions)).item()

        a, b, level = of_mean(small), of_mean(dense), above.item()
        target = (a**2 + right**2 * b**2) ** 0.5 / level
        pooled = [(x.mean() * (1 - x.mean()) / questions.sum()).sqrt().item() for x in (small, dense)]
        shifted = [(x - guessing).clamp(0, 1) for x in (small, dense)]
        lifted = [of_mean(x) ** 2 for x in shifted]
        mistakes = {
            a / level: "the dense model's accuracy has an error as well",
            (a**2 + b**2) ** 0.5 / level: "a change of the dense accuracy changes the share by `kept` times as much: "
            "differentiate the quotient",
            (a**2 + abs(right) * b**2) ** 0.5
            / level: "errors add in squares: the share is squared with the dense error",
            -target: "an error is not negative: the share is, here, and it enters as its square",
            (a**2 + b**2) ** 0.5: "that is the error of a difference of the means: divide by what it is a share of",
            (a + right * b) / level: "independent errors add in squares, not as they are",
            target**2: "that is a variance: its root is missing",
            target * len(questions) ** 0.5: "the mean of T tasks: the root of the summed variances, divided by T",
            target * len(questions): "that is the error of the sum over tasks: divide by their number",
            (
                sum(v * f**2 for v, f in zip(lifted, (1, right), strict=True)) ** 0.5 / level
            ): "the variance is that of the accuracy: take guessing off for the share alone",
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


_WORD = r"a word is what \w+ matches: digits and letters with accents belong to it"


def _runs(
    text: str, words: int, *, lower: bool = True, lines: bool = True, tails: bool = False, pattern: str = r"\w+"
) -> list[tuple]:
    """Runs of so many words of a text, each line by itself."""
    text = text.lower() if lower else text
    parts = [re.findall(pattern, line) for line in (text.split("\n") if lines else [text])]
    return [tuple(part[i : i + words]) for part in parts for i in range(len(part) - (0 if tails else words - 1))]


def _share(known: list[tuple], runs: list[tuple], *, once: bool = False) -> float:
    runs = list(dict.fromkeys(runs)) if once else runs
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def _inside(calibration: str, runs: list[tuple]) -> float:
    """The share with runs looked for as text, which finds them within longer words as well."""
    lines = [" ".join(re.findall(r"\w+", line)) for line in calibration.lower().split("\n")]
    return sum(any(" ".join(run) in line for line in lines) for run in runs) / len(runs)


def _by_line(known: list[tuple], evaluation: str, words: int) -> float:
    shares = [_share(known, runs) for line in evaluation.split("\n") if (runs := _runs(line, words))]
    return sum(shares) / len(shares)
