"""What every lesson's checks do with right, wrong and unfinished answers."""

import pytest

from modegpt.course.check import NotYet


def _unfinished(*_):
    raise NotImplementedError


class Answers:
    """A subclass says which answers: `right` (check, solution) and `wrong` (check, solution, part of the message)."""

    right = wrong = ()

    def pytest_generate_tests(self, metafunc):
        cases = {"right": self.right, "wrong": self.wrong, "check": dict.fromkeys(check for check, _ in self.right)}
        for name in cases.keys() & set(metafunc.fixturenames):
            metafunc.parametrize(name, cases[name])

    def test_right_answers_pass(self, right, capsys):
        check, solution = right
        check(solution)
        assert capsys.readouterr().out.startswith("Right: ")

    def test_wrong_answers_are_rejected_with_the_likely_mistake(self, wrong):
        check, solution, message = wrong
        with pytest.raises(NotYet, match=message):
            check(solution)

    def test_an_unfinished_function_is_named(self, check):
        with pytest.raises(NotYet, match="_unfinished has no solution yet"):
            check(_unfinished)
