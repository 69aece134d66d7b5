"""`make book`: a website of its own, which asks nothing of another and gives no solution away."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from modegpt.course import files as notebooks

pytest.importorskip("myst_nb", reason="the environment of `make book` has it")

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FETCHES = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
SOLUTIONS = {
    path.stem: [found[0] for cell in notebooks.read(path).cells if (found := notebooks.SOLUTION.search(cell.source))]
    for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
}


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs/book", "-d", out / "trees", ".", out / "html"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "html"


class Tags(HTMLParser):
    """The tags of a page, as (name, attributes)."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.slow
def test_every_notebook_and_page_is_there_and_every_link_leads_somewhere(book):
    missing = [name for name in SOLUTIONS if not (book / "notebooks" / f"{name}.html").exists()]
    missing += [page.name for page in (ROOT / "docs").glob("*.md") if not (book / f"docs/{page.stem}.html").exists()]
    assert SOLUTIONS and missing == []
    for page in book.rglob("*.html"):
        for _, attributes in Tags(page).found:
            address = unquote((attributes.get("href") or attributes.get("src") or "").split("#")[0].split("?")[0])
            if not re.match(r"$|[a-z]+:", address):
                assert (page.parent / address).exists(), f"{page.name}: {address}"


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(book):
    for page in book.rglob("*.html"):
        loaded = [attributes.get(FETCHES[tag]) or "" for tag, attributes in Tags(page).found if tag in FETCHES]
        assert [address for address in loaded if re.match(r"//|(?!data:)[a-z]+:", address)] == [], page.name
    for sheet in book.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", sheet.read_text()) == [], sheet.name
    assert (book / "_static/STIXTwoMath-Regular.ttf").stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_chromium_asks_nobody_for_anything(book, tmp_path):
    """All pages in frames of one, without a network: the proxy is a port where nobody listens."""
    pages = sorted(book.rglob("*.html"))
    control = "http://elsewhere.example/picture.png"  # is noted, so others would be too
    (tmp_path / "control.html").write_text(f'<img src="{control}">')
    frames = [f'<iframe src="{page.as_uri()}"></iframe>' for page in [*pages, tmp_path / "control.html"]]
    (tmp_path / "all.html").write_text("".join(frames))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--proxy-server=127.0.0.1:9"]
    options += [f"--user-data-dir={tmp_path / 'user'}", f"--log-net-log={tmp_path / 'log'}", "--dump-dom"]
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", (tmp_path / "all.html").as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    events = [event.get("params", {}) for event in json.loads((tmp_path / "log").read_text())["events"]]
    # what the browser itself asks its makers for has no origin, what a page in a file asks for has a null one
    assert [event["url"] for event in events if event.get("initiator") == "null"] == [control]


@pytest.mark.slow
def test_no_solution_is_in_it(book):
    assert sum(map(len, SOLUTIONS.values())) > 20
    texts = {file: file.read_text(encoding="utf-8") for file in book.rglob("*") if file.suffix in (".ipynb", ".js")}
    for name, solutions in SOLUTIONS.items():
        page = book / "notebooks" / f"{name}.html"
        texts[page] = re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8"))
        (offered,) = {tag[1]["href"] for tag in Tags(page).found if tag[1].get("href", "").endswith(f"{name}.ipynb")}
        assert notebooks.read(page.parent / offered) == notebooks.read(ROOT / "notebooks/exercises" / f"{name}.ipynb")
        if solutions:
            assert texts[page].count("raise NotImplementedError()") >= len(solutions)
    assert [file.name for file, text in texts.items() if "### BEGIN SOLUTION" in text] == []


@pytest.mark.slow
def test_every_picture_has_its_alt_text(book):
    for page in book.rglob("*.html"):
        pictures = [attributes for tag, attributes in Tags(page).found if tag == "img"]
        assert [picture["src"] for picture in pictures if len(picture.get("alt") or "") < 10] == [], page.name


@pytest.mark.slow
def test_keyboards_reach_what_scrolls_and_can_skip_to_the_text(book):
    for page in book.rglob("*.html"):
        tags = Tags(page).found
        assert [attributes for tag, attributes in tags if tag == "pre" and "tabindex" not in attributes] == [], (
            page.name
        )
        assert ("a", "#furo-main-content") in [(tag, attributes.get("href")) for tag, attributes in tags], page.name
        assert [a for _, a in tags if a.get("role") == "heading" and "aria-level" not in a] == [], page.name


@pytest.mark.slow
def test_formulas_are_formulas_tables_are_tables_and_prose_is_prose(book):
    """By default Sphinx pairs dollars wrongly around a display formula, and puts out a cell's table as a line."""
    for page in book.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        formulas = re.findall(r"<math.*?</math>", text, re.S)
        assert [formula for formula in formulas if re.search("(<mi>[a-z]</mi>){7}", formula)] == [], page.name
        prose = re.sub(r"<[^>]*>", "", re.sub(r"<(script|style|pre|math|code)\b.*?</\1>", "", text, flags=re.S))
        assert re.findall(r".{,30}\$.{,30}|.*\| (?:---|—) \|.*", prose) == [], page.name
