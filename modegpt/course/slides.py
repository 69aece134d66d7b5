"""Slides from a notebook: its headings, formulas, figures, summary and short code; one HTML file that needs no network.

nbconvert's own slides put every cell on one and fetch reveal.js and MathJax from elsewhere, so this is a page of its
own: a screen a slide, with the browser's scrolling or the arrow keys, and a page a slide when printed.
"""

import html
import re
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from nbformat import NotebookNode

from modegpt import console
from modegpt.course.commands import chosen
from modegpt.course.files import read
from modegpt.errors import ModegptError
from modegpt.files import write_whole

FONT = "STIXTwoMath-Regular.ttf"
STYLE = f"""
@font-face {{ font-family: "STIX Two Math"; src: url("{FONT}") }}
math {{ font-family: "STIX Two Math", math; font-size: 1.1em }}
"""
STYLE += """
:root { color-scheme: light dark; --ink: light-dark(#1a1a1a, #ececec); --paper: light-dark(#fff, #16181c) }
html { scroll-snap-type: y mandatory; background: var(--paper); color: var(--ink) }
body { margin: 0; font: clamp(16px, 2vw, 30px)/1.4 system-ui, sans-serif }
section { box-sizing: border-box; min-height: 100vh; padding: 5vh 7vw; scroll-snap-align: start;
          display: flex; flex-direction: column; justify-content: center }
h1, h2 { line-height: 1.15; margin: 0 0 .6em } h2 { font-size: 1.5em }
img { max-width: 100%; height: 66vh; object-fit: contain; align-self: center; background: #fff }
figure { margin: 0; display: flex; flex-direction: column } figcaption { font-size: .62em; margin-top: .8em }
pre { font-size: .62em; line-height: 1.35; overflow: auto } table { font-size: .75em; border-collapse: collapse }
td, th { padding: .2em .6em; border-bottom: 1px solid #8888; text-align: left }
math[display=block] { margin: .5em 0; overflow: auto }
@media print { @page { size: 297mm 167mm; margin: 0 } section { break-after: page; height: 167mm; min-height: 0 } }
"""
KEYS = """
addEventListener("keydown", e => {
  const step = { ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1 }[e.key];
  if (!step) return;
  e.preventDefault();
  const all = [...document.querySelectorAll("section")], at = all.findLastIndex(s => s.offsetTop <= scrollY + 5);
  all[Math.max(0, Math.min(all.length - 1, at + step))].scrollIntoView();
});
"""
PICTURE = re.compile(r"<img\b[^>]*>")
HEADING = re.compile(r"^#{2,3} (.+)$", re.M)
FORMULA = re.compile(r"\$\$.+?\$\$", re.S)
CLAIM = re.compile(r"^\*\*(?:The claim|Its control).+$", re.M)
ROWS = 12  # of a table that a slide can hold
LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def write_slides(target: Path, names: list[str] | None, folder: Path) -> None:
    """Write NN_slug.html to `target` for the notebooks of these names, or all.

    Raises ModegptError for a name that no notebook has, or where what the book needs is not installed.
    """
    for package in ("latex2mathml", "mdit_py_plugins", "ziamath"):
        if find_spec(package) is None:
            raise ModegptError(f"slides take {package}: run `pip install -c constraints.txt -e '.[book]'`")
    paths = chosen(folder, names)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(str(files("ziamath") / "fonts" / FONT), target)
    for path in paths:
        title = path.stem.replace("_", " ")
        parts = "\n".join(f"<section>\n{slide}\n</section>" for slide in slides(read(path)))
        page = (
            f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{title}</title>\n<style>{STYLE}</style>\n"
        )
        write_whole(target / f"{path.stem}.html", f"{page}<body>\n{parts}\n<script>{KEYS}</script>\n</body>\n</html>\n")
    console.out.print(f"written: {len(paths)} notebooks as slides to {target}")


def slides(notebook: NotebookNode) -> list[str]:
    """The slides, as HTML: title with claim and control, for each part its heading and formulas, every picture."""
    card = notebook.cells[0].source
    found = [_html("\n\n".join([card.splitlines()[0], *CLAIM.findall(card)]))]
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            if "## Exercises" in cell.source:
                break
            found += map(_part, _parts(cell.source))
            continue
        for output in cell.outputs:
            for picture in PICTURE.findall(output.get("data", {}).get("text/html", "")):
                words = html.unescape(re.search(r'alt="([^"]*)"', picture)[1])
                found.append(f"<figure>{picture}<figcaption>{html.escape(words)}</figcaption></figure>")
        if cell.id.startswith("fifteen"):
            found[-1] += f"\n<pre>{html.escape(cell.source)}</pre>"
    return found


def mathml(formula: str, display: str) -> str:
    """A formula in LaTeX as MathML, for "inline" or "block".

    latex2mathml lets \\lVert grow with what is beside it, which \\| does not, and sets \\log too close.
    """
    from latex2mathml.converter import convert

    formula = re.sub(r"\\[lr]Vert\b", r"\\|", formula)
    return convert(re.sub(r"\\log (?=[\w\\])", r"\\log\\,", formula), display=display)


def _parts(text: str) -> list[str]:
    """The parts of a cell that begin with a heading."""
    starts = [match.start() for match in HEADING.finditer(text)]
    ends = [*starts, len(text)][1:]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _part(text: str) -> str:
    """A heading with its first paragraph and its formulas; lists whole, and tables that fit on a screen."""
    heading, _, rest = text.partition("\n")
    blocks = [block.strip() for block in re.split(r"\n\s*\n", rest) if block.strip()]
    kept = [b for i, b in enumerate(blocks) if i == 0 or b.startswith(("- ", "|", "1. ", "**Theorem")) or "$$" in b]
    kept = [b for b in kept if not (b.startswith("|") and b.count("\n") > ROWS)]
    kept = [b if i == 0 or "$$" not in b else "\n\n".join(FORMULA.findall(b)) for i, b in enumerate(kept)]
    return _html("\n\n".join([f"## {heading.lstrip('# ')}", *kept]))


def _html(text: str) -> str:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def math(content: str, options: dict) -> str:
        return mathml(content, "block" if options["display_mode"] else "inline")

    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    reader.use(dollarmath_plugin, renderer=math, double_inline=True)
    return reader.render(LINK.sub(r"\1", text)).strip()
