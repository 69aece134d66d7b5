"""Slides are made of what a notebook has, and ask nobody."""

import re
from pathlib import Path

import pytest

from modegpt.course.files import read
from modegpt.course.slides import PICTURE, slides, write_slides
from modegpt.errors import ModegptError

for package in ("latex2mathml", "mdit_py_plugins", "ziamath", "nbstripout"):
    pytest.importorskip(package, reason="the environment of `make book` has it")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_picture_is_on_a_slide_and_no_exercise_is(path):
    notebook = read(path)
    found = slides(notebook)
    pages = [
        output.get("data", {}).get("text/html", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    assert "\n".join(found).count("<figure>") == len(PICTURE.findall("".join(pages)))
    assert found[0].startswith("<h1>") and "The claim" in found[0] and "Its control" in found[0]
    text = "\n".join(found)
    assert "<h2>Summary</h2>" in text and "SOLUTION" not in text and "Difficulty: " not in text
    assert "$" not in re.sub(r"<pre>.*?</pre>|<img[^>]*>|<code>.*?</code>", "", text, flags=re.S)


def test_a_file_for_each_notebook_that_fetches_nothing(tmp_path):
    write_slides(tmp_path / "out", ["02"], FOLDER)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "02_output_error.html",
        "STIXTwoMath-Regular.ttf",
    ]
    page = (tmp_path / "out" / "02_output_error.html").read_text(encoding="utf-8")
    assert page.count("<section>") > 10 and not re.search(r'(?:src|href)="http|@import|url\("http', page)
    with pytest.raises(ModegptError, match="no notebook"):
        write_slides(tmp_path / "out", ["99"], FOLDER)
