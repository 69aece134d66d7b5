import pytest

from modegpt import ModegptError
from modegpt.evaluate.tasks import PAPER_FIVE, TaskScore, mean_accuracy, task_names
from modegpt.sources import questions
from modegpt.sources.questions import QUESTION_SETS, load_questions


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("arc_easy", 2376),
        ("arc_challenge", 1172),
        ("piqa", 1838),
        ("winogrande", 1267),
        ("hellaswag", 10042),
        ("boolq", 3270),
    ],
)
def test_every_set_is_whole(name, items):
    assert len(load_questions(name)) == items == QUESTION_SETS[name].items


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_keys_point_at_an_answer_and_no_question_comes_twice(name):
    rows = load_questions(name)
    assert all(row["answerKey"] in row["choices"]["label"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert not any(row["question"].startswith("Question:") or "Answer:" in row["question"] for row in rows)
    first = {"arc_easy": "Sunlight is the source of energy for nearly all ecosystems."}.get(name)
    if first:
        assert rows[0]["choices"]["text"]["ABCD".index(rows[0]["answerKey"])] == first


def test_a_set_of_another_size_is_refused(monkeypatch):
    short = questions.QuestionSet("validation", "", QUESTION_SETS["piqa"].place, "", 1839)
    monkeypatch.setitem(QUESTION_SETS, "piqa", short)
    with pytest.raises(ModegptError, match="1838 questions instead of 1839"):
        load_questions("piqa")


def test_names_of_tasks():
    assert task_names("boolq, paper-five,piqa") == ["boolq", *PAPER_FIVE]
    with pytest.raises(ModegptError, match="unknown task 'paper-six'"):
        task_names("paper-six")


def test_mean_of_independent_tasks():
    scores = [TaskScore("piqa", "acc", a, e, a, e, 10, 10, [], []) for a, e in ((0.5, 0.03), (0.7, 0.04))]
    assert mean_accuracy(scores) == (pytest.approx(0.6), pytest.approx(0.025))
