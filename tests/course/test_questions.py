"""The question bank: every number that can be computed is, and the pages hold what they should."""

import re
from pathlib import Path

import pytest

from modegpt.course.questions import KINDS, load, write_pages
from modegpt.errors import ModegptError

ROOT = Path(__file__).resolve().parents[2]
BANK = load(ROOT / "docs" / "teaching" / "questions.yml")


@pytest.mark.parametrize("question", [q for q in BANK if q.verify], ids=lambda q: q.id)
def test_the_numbers_of_an_answer(question):
    assert "assert" in question.verify
    exec(compile(question.verify, question.id, "exec"), {})


def test_the_bank_is_one_of_sixty_over_all_notebooks():
    assert len(BANK) >= 60 and len({q.id for q in BANK}) == len(BANK)
    assert {q.kind for q in BANK} == set(KINDS) and min(sum(q.kind == k for q in BANK) for k in KINDS) >= 12
    assert {q.notebook for q in BANK} <= {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert [q.id for q in BANK if not q.id.startswith(f"{q.notebook}-") or not 3 <= q.total <= 6] == []
    # a written answer with a number has a check
    assert [q.id for q in BANK if q.kind == "written" and re.search(r"= ?[\d.]{3}", q.answer) and not q.verify] == []


def test_two_pages_of_which_one_has_no_answers(tmp_path):
    write_pages(tmp_path / "exam", ROOT / "notebooks")
    asked, told = ((tmp_path / "exam" / name).read_text(encoding="utf-8") for name in ("questions.md", "answers.md"))
    for q in BANK:
        assert q.question.strip() in asked and q.question.strip() in told and q.answer.strip() in told
        assert q.answer.strip() not in asked and q.wrong.strip() not in asked
    with pytest.raises(ModegptError, match="exists"):
        write_pages(tmp_path / "exam", ROOT / "notebooks")


@pytest.mark.parametrize("text", ["- id: x", "just words", "[", "- {id: 1, mark: 2}"])
def test_a_file_that_is_no_bank_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "questions.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ModegptError, match="is no question bank") as refused:
        load(tmp_path / "questions.yml")
    assert "\n" not in str(refused.value)
    with pytest.raises(ModegptError, match="cannot read"):
        load(tmp_path / "none.yml")
