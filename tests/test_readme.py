"""What the pages promise: each command runs, here with less work or where a table says; links lead somewhere."""

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

from modegpt.course import commands as notebooks
from modegpt.study import reproduce
from modegpt.study.findings import findings
from modegpt.study.report import read_results

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/README.md", "figures/results/README.md")
}
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"^    (?:python|modegpt|make) .*$", re.M)  # notebooks/README.md has its commands so

# What runs a command of the pages: a test, or a step of `make reproduce`, or CI. All others run below.
PARALLEL = "test_parallel.py::test_two_ranks_make_the_model_of_one"
METHOD, NOTEBOOK, EXERCISE = (
    f"test_contributing.py::test_{name}"
    for name in (
        "a_method_of_the_users_is_compared_and_compresses",
        "a_new_notebook_runs_and_keeps_the_rules_of_the_form",
        "a_new_exercise_is_handed_out_and_graded",
    )
)
ELSEWHERE = {
    "make setup": "ci: make test",
    "make test": "ci: make test",
    "make test 'ARGS=-k svd'": "ci: make test",
    "make test-oldest": "test_readme.py::test_the_oldest_transformers_has_tests_to_run",
    "make lint": "ci: make lint",
    "make api": "test_public_names.py::test_make_api_writes_a_reference_that_needs_no_network",
    "make lab": "test_readme.py::test_make_lab_serves_the_notebooks",
    "make exercises": "test_notebooks.py::test_exercises_lack_solutions_and_outputs_and_nothing_else",
    "make grade SUBMISSIONS=hand-ins": (
        "test_notebooks.py::test_grading_gives_what_is_due_and_brings_back_the_check_cells"
    ),
    "make reproduce": "test_reproduce.py::test_a_failing_step_is_marked_and_the_report_comes_out",
    "make reproduce PROFILE=gpu": "test_reproduce.py::test_the_profiles_name_commands_that_exist",
    "make reproduce PROFILE=paper MODEL=meta-llama/Llama-2-7b-hf": (
        "test_reproduce.py::test_the_papers_profile_on_a_local_folder"
    ),
    "make verify": "test_reproduce.py::test_verify_passes_within_and_fails_beyond_the_tolerance",
    "python -m modegpt.study.ratios --calibration wikitext2:validation --text wikitext2 --samples 120 "
    "--calibration-length 2048 --windows 140 --multiple-of 1 --out wikitext2": "step: every ratio",
    "python -m modegpt.study.fwsvd_task": (
        "test_fwsvd_task.py::test_a_whole_run_and_one_that_was_interrupted_give_the_same"
    ),
    "python -m modegpt.study.claims allocation modules": "step: claims",
    "python -m modegpt.study.overlap": "test_overlap.py::test_what_is_not_at_hand_is_left_out_and_said",
    "python -m modegpt.study.results 'figures/results/*.json'": (
        "test_results.py::test_the_module_checks_files_and_prints_the_schema"
    ),
    "modegpt evaluate small --tasks paper-five": (
        "evaluate/test_tasks.py::test_the_command_prints_and_writes_scores_and_answers"
    ),
    "modegpt bench scaling --ranks 1,2 --out scaling.json": (
        "bench/test_scaling.py::test_one_and_two_ranks_on_the_cpu"
    ),
    "torchrun --nproc-per-node=2 -m modegpt compress MODEL --ratio 0.3 --out small --device cuda": PARALLEL,
    "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -m modegpt compress ...": (
        "test_parallel.py::test_two_hosts_meet_at_a_rendezvous"
    ),
    "python -m modegpt.course.commands run": "test_notebooks.py::test_run_repeats_only_what_changed",
    "python -m modegpt.course.commands run 05 --profile quick": "step: notebook 05_svd",
    "python -m modegpt.course.commands run 03 -p layer=2 --out elsewhere": (
        "test_notebooks_parameters.py::test_what_the_text_recommends_runs_through"
    ),
    "python -m modegpt.course.commands run 13 --profile gpu": (
        "test_notebook_live.py::test_it_measures_and_compresses_the_readers_own_model"
    ),
    "python -m modegpt.course.commands run 15 -p folder=../figures/reproduction/cpu": (
        "step: notebook 15_reproduction_report"
    ),
    "python svd_rms.py compare opt-mini --methods svd,svd-rms,svd-llm --ratios 0.3 --out svd-rms.json": METHOD,
    "python svd_rms.py compress opt-mini --ratio 0.3 --method svd-rms --out small-rms": METHOD,
    "python new_notebook.py 14_my_question": NOTEBOOK,
    "python -m modegpt.course.commands refresh 14": NOTEBOOK,
    "python new_exercise.py notebooks/14_my_question.ipynb 1": EXERCISE,
}
LESS = {  # work for the commands that run here
    "compress": {"--samples": "8", "--seq-len": "64"},
    "evaluate": {"--windows": "2", "--seq-len": "64"},
    "generate": {"--max-new-tokens": "4"},
    "compare": {"--samples": "8", "--calibration-length": "64", "--windows": "2", "--seq-len": "64"}
    | {"--methods": "modegpt,svd", "--ratios": "0.3"},
    "export": {},
    "doctor": {},
}


def commands(page: str) -> list[str]:
    """The commands of a block or of indented lines, each on one line, without what a comment says."""
    found = []
    for line in page.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        found += [shlex.join(words)] if words else []
    return found


def blocks(page: str) -> list[tuple[str, str]]:
    """("sh" or "python", what it holds) of a page, in order."""
    return BLOCK.findall(PAGES[page]) + [("sh", line) for line in INDENTED.findall(PAGES[page])]


ALL = {command: page for page in PAGES for kind, text in blocks(page) if kind == "sh" for command in commands(text)}


@pytest.mark.parametrize("command", ALL)
def test_something_runs_every_command(command):
    """A command that is neither run below nor in ELSEWHERE fails: run it in some test, and say there in which."""
    words = command.split()
    if command not in ELSEWHERE:
        assert words[0] == "modegpt" and words[1] in LESS, f"nothing runs `{command}` of {ALL[command]}"
        assert ALL[command] == "README.md", "only the README's run below"
        return
    kind, _, place = ELSEWHERE[command].partition(": ")
    if kind == "ci":
        assert place in (ROOT / ".ci/run").read_text()
    elif kind == "step":
        assert place in {step.name for step in steps()}
    else:
        file, _, name = kind.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def steps() -> list[reproduce.Step]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return list(reproduce.steps("cpu", Path("out"), None))


def test_no_line_of_the_table_is_left_over():
    assert [command for command in ELSEWHERE if command not in ALL] == []


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
    tiny = str(dense_folder)
    return {"smollm2-135m": "opt-mini", "meta-llama/Llama-2-7b-hf": tiny, "some-70b-folder": tiny, "cuda": "cpu"}


SECTIONS = [part for part in re.split(r"^## ", PAGES["README.md"], flags=re.M) if BLOCK.search(part)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: slug(section.splitlines()[0]))
def test_a_section_of_the_readme_runs_from_top_to_bottom(section, here, modegpt, one_thread):
    """Commands and code as a newcomer types them, with opt-mini or tiny random weights, and less text."""
    for kind, text in BLOCK.findall(section):
        if kind == "python":
            for name, stand_in in here.items():
                text = text.replace(f'"{name}"', f'"{stand_in}"')
            text = text.replace("tokenizer=tokenizer, ", "tokenizer=tokenizer, samples=8, seq_len=64, ")
            exec(compile(text, "README.md", "exec"), {})
            continue
        for command in commands(text):
            if command in ELSEWHERE:
                continue
            words = [here.get(word, word) for word in shlex.split(command)][1:]
            for option, value in LESS[words[0]].items():
                if option in words:
                    del words[words.index(option) : words.index(option) + 2]
                words += [option, value]
            done = modegpt(*words)
            assert done.code == 0, f"{command}\n{done.err}"


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


def test_the_oldest_transformers_has_tests_to_run():
    """`make test-oldest` makes an environment of its own, so it is run by hand; its tests are those of `make test`."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    told = subprocess.run(["make", "-n", "test-oldest"], cwd=ROOT, capture_output=True, text=True).stdout
    tested = next(line for line in told.splitlines() if "-m pytest" in line)
    paths = re.findall(r"tests/[\w/.]+", tested)
    assert len(paths) > 5 and all((ROOT / path).exists() for path in paths)


def test_every_target_of_make_that_a_page_names_is_there():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    named = {name for page in PAGES.values() for name in re.findall(r"(?:^|`)make ([a-z-]+)", page, re.M)}
    assert named and named <= set(targets)


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


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_the_table_of_notebooks_says_what_the_cards_say(path):
    card = notebooks.read(path).cells[0].source
    title = re.match(r"# (.*)", card)[1]
    card = card.replace("half a minute", "30 s")
    number, unit = re.search(r"\*\*Time\*\*\D*(\d+) (s|min)", card).groups()
    (row,) = re.findall(rf"^\| \[{re.escape(title)}\]\(notebooks/{path.name}\) \|.*$", PAGES["README.md"], re.M)
    assert f" | {number} {unit} | " in row and f"(figures/{path.stem}.png)" in row


def test_the_verdicts_are_those_of_the_committed_results():
    files, bad = read_results(ROOT / "figures/results")
    assert bad == []
    rows = {cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in PAGES["README.md"].splitlines())}
    for finding in findings(files):
        if not finding.verdict:
            continue
        claim, paper, ours, verdict = rows[finding.claim]
        assert verdict == finding.verdict
        known = f"{finding.paper} {finding.ours} {finding.why} {finding.claim}"
        for number in re.findall(r"\d+(?:\.\d+)?", f"{paper} {ours}"):
            assert number in known, f"{claim}: where does {number} come from?"


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert f"{project['version']}" in PAGES["CHANGELOG.md"]
    paper = citation["preferred-citation"]
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in re.sub(r"\s+", " ", PAGES["README.md"])
    assert paper["title"].removeprefix("MoDeGPT") in PAGES["README.md"].replace("{{MoDeGPT}}", "")
