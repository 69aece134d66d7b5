"""Sphinx's settings for `make book`: the pages and notebooks where they lie, without solutions, and without a run."""

import re
import shutil
from importlib.metadata import version as installed
from importlib.resources import files
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from modegpt.course.files import SOLUTION, STUB
from modegpt.course.slides import mathml

project = "MoDeGPT, step by step"
author = copyright = "the modegpt authors"
version = release = installed("modegpt")

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "figures/results/*.md", "notebooks/*.ipynb", "notebooks/README.md"]
include_patterns += ["notebooks/exercises/README.md", "modegpt/assets/*/README.md"]
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # of what cells put out: it has tables
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True  # a display formula may stand in a paragraph
myst_heading_anchors = 3
# A link to a folder leads nowhere in a book; the tables beside the results files are linked from their list.
suppress_warnings = ["myst.xref_missing", "toc.not_included"]

html_theme = "furo"
html_title = project
html_copy_source = False  # the sources of the notebooks hold the solutions
html_math_renderer = "mathml"
html_static_path = ["static", str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf")]  # for the equations
html_css_files = ["book.css"]

CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: Notebooks

notebooks/[0-9]*
```

```{toctree}
:hidden:
:glob:
:caption: Pages

docs/*
figures/results/README
notebooks/README
notebooks/exercises/README
modegpt/assets/*/README
CONTRIBUTING
CHANGELOG
```
"""


ACCESSIBLE = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    "<pre>": '<pre tabindex="0">',  # what scrolls must be reached by keyboard
    "<pre style=": '<pre tabindex="0" style=',  # rich's, in a notebook's output
}
HINT = re.compile("(?<=</summary>)|(?=</details>)")


def prepare(app: Sphinx, name: str, source: list[str]) -> None:
    """The front page gets the table of contents; a notebook loses its solutions and offers the students' copy.

    Sphinx reads a hint as Markdown only between blank lines, which Jupyter does not ask for.
    """
    if name == root_doc:
        source[0] += CONTENTS
    elif (file := Path(app.env.doc2path(name))).suffix == ".ipynb":
        notebook = nbformat.reads(source[0], as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = SOLUTION.sub(STUB, cell.source)
            else:
                cell.source = HINT.sub("\n\n", cell.source)
        notebook.cells[0].source += f"\n\n{{download}}`Download this notebook <exercises/{file.name}>`"
        source[0] = nbformat.writes(notebook)


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math" tabindex="0">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def finish(app: Sphinx, error: Exception | None) -> None:
    """What keyboards and screen readers miss in the theme's pages; and a site begins with index.html."""
    if error:
        return
    for page in app.outdir.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for found, better in ACCESSIBLE.items():
            text = text.replace(found, better)
        page.write_text(text, encoding="utf-8")
    shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.connect("build-finished", finish)
    app.add_html_math_renderer(html_math_renderer, (inline, None), (block, None))
