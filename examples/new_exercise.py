"""python examples/new_exercise.py notebooks/16_my_question.ipynb 1: appends an exercise, with nbgrader's marks."""

import sys
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell

from modegpt.course import files

path, number = Path(sys.argv[1]), f"{Path(sys.argv[1]).name[:2]}-{sys.argv[2]}"
task = f"""### Exercise {number.replace("-", ".")}: what the scores add up to

Difficulty: 1 of 5, 5 minutes.

Write `effective_dimension(gram, ridge)`: the sum of the leverage scores of a Gram matrix.

<details><summary>Hint 1</summary>With a ridge of nearly nothing every channel counts 1.</details>
<details><summary>Hint 2</summary>It is a trace.</details>"""
solution = '''def effective_dimension(gram, ridge):
    """C (n, n) -> a float in [0, n]."""
    ### BEGIN SOLUTION
    return leverage_scores(gram, ridge).sum().item()
    ### END SOLUTION'''
check = """import torch
from modegpt.course.check import expect
found = effective_dimension(torch.eye(4, dtype=torch.float64), 1.0)
expect(found != 4, "that is the number of channels: the ridge has no say in it")
expect(abs(found - 2) < 1e-9, "four channels as large as the ridge should count a half each")"""
plain = {"schema_version": 3, "task": False, "solution": False, "grade": False, "locked": False}
write = plain | {"grade_id": f"ex-{number}", "solution": True}
grade = plain | {"grade_id": f"check-{number}", "grade": True, "locked": True, "points": 1}
notebook = files.read(path)
notebook.cells += [
    new_markdown_cell(task, id=f"task-{number}"),
    new_code_cell(solution, id=f"solution-{number}", metadata={"nbgrader": write}),
    new_code_cell(check, id=f"check-{number}", metadata={"nbgrader": grade}),
]
files.write(files.scrub(notebook), path)
