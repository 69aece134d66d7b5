"""The question bank as pages: one with the questions alone, one with answers and rubric."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from modegpt import console
from modegpt.course.commands import chosen
from modegpt.errors import ModegptError
from modegpt.files import write_whole

KINDS = {"written": "Written", "oral": "Oral", "breaks": "What breaks if"}


class Question(BaseModel):
    """One question of docs/teaching/questions.yml, whose head explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    notebook: str
    kind: Literal["written", "oral", "breaks"]
    minutes: int
    question: str
    answer: str
    points: list[tuple[int, str]]
    wrong: str
    verify: str = ""

    @property
    def total(self) -> int:
        return sum(points for points, _ in self.points)


def load(file: Path) -> list[Question]:
    """The questions in the order of the file. Raises ModegptError for a file that is missing or not as it should be."""
    try:
        return [Question(**entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8"))]
    except OSError as error:
        raise ModegptError(f"cannot read {file}: {error.strerror} (a handout has no question bank)") from error
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise ModegptError(f"{file} is no question bank: {' '.join(str(error).split())}") from error


def write_pages(target: Path, folder: Path) -> None:
    """Write questions.md and answers.md to `target`, a folder that does not exist yet."""
    if target.exists():
        raise ModegptError(f"{target} exists: give the pages a folder of its own")
    titles = {path.stem[:2]: path.stem[3:].replace("_", " ") for path in chosen(folder, None)}
    bank = load(folder.resolve().parent / "docs" / "teaching" / "questions.yml")
    by_kind = {words: [question for question in bank if question.kind == kind] for kind, words in KINDS.items()}
    questions = ["# Questions"]
    answers = ["# Answers and rubric", "For lecturers. Students get neither this page nor the file that it is made of."]
    for words, group in by_kind.items():
        table = ["| question | notebook | minutes | points |", "|---|---|---:|---:|"]
        table += [
            f"| [{q.id}](#{q.id}) | {q.notebook} {titles.get(q.notebook, '')} | {q.minutes} | {q.total} |"
            for q in group
        ]
        questions.append(f"## {words}")
        answers += [f"## {words}", "\n".join(table)]
        for q in group:
            head = f"### {q.id}\n\n*{words}, {q.minutes} minutes, {q.total} points.*\n\n{q.question.strip()}"
            questions.append(head)
            rubric = "\n".join(f"- **{points}**: {what}" for points, what in q.points)
            answers += [head, f"**Answer.** {q.answer.strip()}", f"**Points.**\n\n{rubric}"]
            answers.append(f"**Typical wrong answer.** {q.wrong.strip()}")
    for name, parts in (("questions.md", questions), ("answers.md", answers)):
        write_whole(target / name, "\n\n".join(parts) + "\n")
    console.out.print(f"written: {len(bank)} questions to {target}")
