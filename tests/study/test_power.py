"""The profile for two cores measures as much as its verdicts need."""

from pathlib import Path

import pytest

from modegpt.study.experiments import PLANS
from modegpt.study.power import Need, needs
from modegpt.study.reproduce import DRAWS, WINDOWS, steps
from modegpt.study.verdicts import JUDGES


@pytest.mark.parametrize(("distance", "spread", "count"), [(0.1, 0.1, 4), (0.1, 0.11, 5), (1.0, 0.1, 2)])
def test_two_standard_errors_decide(distance, spread, count):
    assert Need("a claim", "draws", distance, spread).count == count
    assert count == 2 or 2 * spread / count**0.5 <= distance < 2 * spread / (count - 1) ** 0.5


def test_the_profile_for_two_cores_takes_what_is_needed():
    found = needs()
    taken = {"draws": DRAWS, "windows": WINDOWS}
    own = [need for need in found if need.what in taken]
    assert len(own) == 4 and all(need.count <= taken[need.what] for need in own)
    words = [" ".join(step.words) for step in steps("cpu", Path("out"), None)]
    assert any(f"allocation --plan small --seeds {DRAWS}" in text for text in words)
    assert any(f"--windows {WINDOWS}" in text for text in words)
    for need in found:  # what is left to a GPU needs more than two cores answer
        assert need in own or need.count > 500
        assert any(claim.replace(" %", "%").startswith(need.claim.split(" at ")[0]) for claim, *_ in JUDGES)


def test_the_profile_for_a_gpu_asks_enough_questions_where_there_are_enough():
    (kept, above) = [need for need in needs() if need.what == "questions"]
    assert kept.count <= PLANS["short"].questions and PLANS["short"].seeds == DRAWS
    assert above.count > above.most
    words = [" ".join(step.words) for step in steps("gpu", Path("out"), None)]
    assert sum("--plan short" in text for text in words) == 2
