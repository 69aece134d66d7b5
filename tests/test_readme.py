"""What the pages say holds: commands and code run, links lead somewhere, numbers come from results files."""

import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from modegpt.course import files as notebooks
from modegpt.study import pages as generated

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/README.md", "figures/results/README.md"]
NAMES += [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
TEMPLATES = {
    name: (generated.TEMPLATES / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        *(f"docs/{page}.md" for page in ("artifact", "better", "gpus", "measuring", "use")),
        "figures/results/README.md",
    )
}
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.M | re.S)
LESS = {  # work for the commands that run here
    "compress": {"--samples": "8", "--seq-len": "64"},
    "evaluate": {"--windows": "2", "--seq-len": "64"},
    "generate": {"--max-new-tokens": "4"},
    "compare": {"--samples": "8", "--calibration-length": "64", "--windows": "2", "--seq-len": "64"}
    | {"--methods": "modegpt,svd", "--ratios": "0.3"},
    "export": {},
}
RUN = ("README.md", "docs/own-model.md")  # from top to bottom, in one folder


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without what a comment says."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


ALL = {
    shlex.join(words): words
    for page in PAGES
    for kind, text in BLOCK.findall(PAGES[page])
    if kind == "sh"
    for words in commands(text)
}


@pytest.mark.parametrize("command", [c for c, words in ALL.items() if words[0] == "modegpt"])
def test_a_command_and_its_options_exist(command, modegpt):
    """Told by --help, which wins over what else is asked."""
    words = [word for word in ALL[command][1:] if word != "..."]
    verbs = words[: 2 if words[0] in ("study", "course", "bench") else 1]
    done = modegpt(*verbs, "--help")
    assert done.code == 0, done.err
    told = set(re.findall(r"--?[a-z][a-z-]*", done.out))
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= told


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_every_target_of_make_that_a_page_names_is_there():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    named = {name for page in PAGES.values() for name in re.findall(r"(?:^|`)make ([a-z-]+)", page, re.M)}
    assert named and named <= set(targets)


@pytest.fixture
def here(tmp_path, monkeypatch, text_file, dense_folder) -> dict[str, str]:
    """An empty folder to be in, with a WikiText-2 of invented words; what stands in for the models on the page."""
    data = tmp_path / "data" / "wikitext2-raw"
    data.mkdir(parents=True)
    (data / "wiki.train.raw").write_text(text_file.read_text()[:40_000])
    (data / "wiki.test.raw").write_text(text_file.read_text()[40_000:44_000])
    monkeypatch.setenv("MODEGPT_DATA_DIR", str(data.parent))
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    return {"smollm2-135m": str(dense_folder), "meta-llama/Llama-2-7b-hf": str(dense_folder), "cuda": "cpu"}


@pytest.mark.slow
def test_the_front_page_and_the_page_of_models_run_from_top_to_bottom(here, modegpt, one_thread):
    """Commands and code as a newcomer types them, with tiny random weights for a Llama, and less text."""
    for kind, text in (block for page in RUN for block in BLOCK.findall(PAGES[page])):
        if kind == "python":
            for name, stand_in in here.items():
                text = text.replace(f'"{name}"', f'"{stand_in}"')
            text = text.replace("tokenizer=tokenizer, ", "tokenizer=tokenizer, samples=8, seq_len=64, ")
            text = text.replace('load_labelled("sst2")', '(part[:32] for part in load_labelled("sst2"))')
            exec(compile(text, "page", "exec"), {})
            continue
        for words in commands(text):
            if words[0] != "modegpt":
                continue
            words = [here.get(word, word) for word in words[1:]]
            for option, value in LESS[words[0]].items() if "--task" not in words else ():
                if option in words:
                    del words[words.index(option) : words.index(option) + 2]
                words += [option, value]
            done = modegpt(*words)
            assert done.code == 0, f"{shlex.join(words)}\n{done.err}"


def contents(server: str) -> list[str]:
    """Names of the files that a Jupyter server shows; it says its address a moment before it answers."""
    while True:
        try:
            with urllib.request.urlopen(f"{server}/api/contents?token=t") as answer:
                return [entry["name"] for entry in json.load(answer)["content"]]
        except urllib.error.URLError:
            time.sleep(0.1)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("soon", [90], indirect=True)
def test_make_lab_serves_the_notebooks(tmp_path, soon):
    pytest.importorskip("jupyterlab", reason="the environment of `make setup` has it")
    venv = Path(sys.executable).parents[1]
    options = "--no-browser --allow-root --port=0 --IdentityProvider.token=t"
    made = ["make", "lab", f"VENV={venv}", "-o", f"{venv}/.ready", f"ARGS={options}"]  # -o: no set-up again
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(made, cwd=ROOT, env=environment, start_new_session=True, **pipes) as lab:
        try:
            said = ""
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = lab.stderr.readline()
                assert line, said  # the server has ended
                said += line
            assert "00_start_here.ipynb" in contents(address[0])
        finally:
            os.killpg(lab.pid, signal.SIGKILL)


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = html.unescape(link).partition("#")
        if target.startswith("http"):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if file.suffix == ".md" and file.exists() else []
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_one_click_from_the_front_page():
    linked = set(re.findall(r"\]\(([^)#\s]+)", PAGES["README.md"]))
    assert {page for page in PAGES if page.startswith("docs/")} <= linked


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_the_table_of_notebooks_says_what_the_cards_say(path):
    card = notebooks.read(path).cells[0].source
    title = re.match(r"# (.*)", card)[1]
    card = card.replace("half a minute", "30 s")
    number, unit = re.search(r"\*\*Time\*\*\D*(\d+) (s|min)", card).groups()
    (row,) = re.findall(rf"^\| \[{re.escape(title)}\]\(notebooks/{path.name}\) \|.*$", PAGES["README.md"], re.M)
    assert f" | {number} {unit} | " in row and f"(figures/{path.stem}.png)" in row


def test_generated_pages_are_up_to_date():
    """They are made from docs/templates and figures/results by `modegpt study pages`."""
    found = dict(generated.pages())
    assert set(found) == set(TEMPLATES)
    assert [name for name, text in found.items() if PAGES[name] != text] == []


NUMBER = re.compile(  # with a decimal point, a unit, or a number in words of measure
    r"(?<![\w.,/-])\d[\d,]*(?:\.\d+(?![\w.]*\])|\s?(?:%|ms|s|µs|min|minutes|hours|times|GiB|GB|MB|tokens/s)(?![\w/]))"
)
ROUND = re.compile(r"(?:[1-5]0|25|5) %$")  # a share that was asked for


def typed(text: str) -> list[str]:
    """Numbers of the prose that look measured and are typed by hand: neither code, link nor expression."""
    for part in (r"^```.*?^```$", r"<<.*?>>", r"<%.*?%>", r"`[^`]*`", r"\]\([^)]*\)", r"https?://\S+", r"arXiv [\d.]+"):
        text = re.sub(part, "", text, flags=re.M | re.S)
    return [found for found in NUMBER.findall(text) if not ROUND.match(found)]


HAND_WRITTEN = [page for page in PAGES if page.startswith("docs/") and page not in TEMPLATES and "teaching" not in page]


@pytest.mark.parametrize("page", [*TEMPLATES, *HAND_WRITTEN])
def test_every_number_has_a_source(page):
    """Those of a results file by an expression, those that are chosen or quoted by `given`."""
    assert typed(TEMPLATES.get(page) or PAGES[page]) == []


@pytest.mark.parametrize(
    "words", ["a perplexity of 42.55 (dense", "41 % faster", "it takes 25 s.", "5.8 % lower", "4 times"]
)
def test_a_number_typed_by_hand_is_found(words):
    assert typed(f"On SmolLM2 {words} now.\n") and typed(TEMPLATES["README.md"] + words)


def test_every_figure_is_traced_to_where_it_comes_from():
    index = PAGES["figures/results/README.md"]
    for picture in (ROOT / "figures").glob("*.png"):
        assert f"(../{picture.name})" in index, f"{picture.name}: from which results file or notebook?"


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert f"{project['version']}" in PAGES["CHANGELOG.md"]
    readme = " ".join(PAGES["README.md"].split())
    oldest = re.findall(r"^(\w+)>=([\d.]+)", "\n".join(project["dependencies"]), re.M)
    assert len(oldest) == 2 and all(f"{name} {version} or newer" in readme for name, version in oldest)
    paper = citation["preferred-citation"]
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in readme
    assert paper["title"].removeprefix("MoDeGPT") in readme.replace("{{MoDeGPT}}", "")
