"""The files in examples/, as files of a user's, run as CONTRIBUTING.md says; what it quotes of them is theirs."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from modegpt import load_model
from modegpt.course import files
from modegpt.families.dialects import DIALECTS
from modegpt.methods import METHODS
from modegpt.study.results import load

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
TINY = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL = ("--samples", "4", "--calibration-length", "64", "--windows", "2", "--seq-len", "64", "--device", "cpu")


def test_what_the_page_quotes_stands_in_an_example():
    quotes = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert quotes and [quote for quote in quotes if not any(quote in code for code in EXAMPLES.values())] == []


def test_the_page_leads_to_every_example():
    assert {name for name in EXAMPLES if f"(examples/{name})" not in PAGE} == set()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to be in, that has examples/."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder):
    """Runs `python ARGUMENTS...`; returns what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

    def call(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return call


@pytest.fixture
def run_here(folder, monkeypatch, one_thread):
    """The same in this process, which saves the seconds that importing torch takes; what it adds to tables goes."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def call(*arguments: str) -> str:
        start, rest = (runpy.run_module, arguments[1:]) if arguments[0] == "-m" else (runpy.run_path, arguments)
        monkeypatch.setattr(sys, "argv", list(rest))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                start(rest[0], run_name="__main__")
            except SystemExit as end:
                assert not end.code, said.getvalue()
        return said.getvalue()

    with mock.patch.dict(METHODS), mock.patch.dict(DIALECTS):
        yield call


def commands(start: str) -> list[list[str]]:
    """The page's commands that begin like this, as arguments of Python."""
    found = [shlex.split(line) for line in PAGE.splitlines() if line.startswith(start)]
    assert found
    return [words[1:] if words[0] == "python" else ["-m", *words] for words in found]


@pytest.mark.slow
def test_a_method_of_the_users_is_compared_and_compresses(run, run_here, tmp_path):
    model, tokenizer = load_model("opt-mini")
    model.model.decoder.layers = model.model.decoder.layers[:2]  # trained weights, and a quarter of the work
    model.config.num_hidden_layers = 2
    model.save_pretrained("two-layers"), tokenizer.save_pretrained("two-layers")
    compare, compress = (
        ["two-layers" if word == "opt-mini" else word for word in words]
        for words in commands("python examples/svd_rms.py")
    )
    run_here(*compare, *SMALL)
    results = load(tmp_path / "svd-rms.json")
    (found,) = results.find(method="svd-rms")
    (plain,) = results.find(method="svd")
    assert found.value < plain.value, "it looks at the data, and plain SVD does not"
    assert found.details["block_ratio"] == plain.details["block_ratio"] > 0.2
    assert "| svd-rms | " in (tmp_path / "svd-rms.md").read_text()
    assert results.command.startswith("python svd_rms.py compare")
    run(*compress, *(*SMALL[:2], "--seq-len", "64", "--device", "cpu"))
    assert json.loads((tmp_path / "small-rms/modegpt_report.json").read_text())["method"] == "svd-rms"


@pytest.mark.slow
def test_a_dialect_of_the_users_passes_its_tests_and_every_method_takes_it(
    run, run_here, tmp_path, text_file, tiny_tokenizer
):
    assert "3 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/test_ernie.py")
    config = Ernie4_5Config(vocab_size=len(tiny_tokenizer), num_key_value_heads=2, head_dim=12, **TINY)
    Ernie4_5ForCausalLM(config).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "other.txt").write_text(text_file.read_text()[:40_000])
    options = ["--ratios", "0.3", "--calibration", str(text_file), "--text", "other.txt", "--out", "all.json"]
    run_here("examples/ernie.py", "compare", "dense", *options, *SMALL)
    assert [row.method for row in load(tmp_path / "all.json").rows if row.value] == ["dense", *METHODS]


@pytest.mark.slow
def test_ways_to_shrink_query_key_norms_are_compared_and_compress_takes_the_one_of_one_number(run_here):
    said = dict(line.rsplit(": ", 1) for line in run_here("examples/query_key_norms.py", "3", "20").splitlines()[1:])
    assert len(said) == 3 * 6
    for rank in (24, 16, 8):
        assert said[f"{rank} of 32, modegpt.compress"] == said[f"{rank} of 32, RMS of the kept, one number a head"]


@pytest.mark.slow
def test_a_new_notebook_with_an_exercise_keeps_the_rules_and_is_graded(run_here, tmp_path):
    pytest.importorskip("papermill", reason="the environment of `make setup` has it")
    (tmp_path / "notebooks").mkdir()
    for command in (*commands("python examples/new_"), *commands("modegpt course refresh")):
        run_here(*command)

    path = tmp_path / "notebooks/16_my_question.ipynb"
    assert files.signature(files.read(path)) == (tmp_path / "figures/16_my_question.png").read_bytes()
    spec = importlib.util.spec_from_file_location("lint", ROOT / "tests/course/test_notebooks_lint.py")
    lint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lint)
    for rule in (
        lint.test_first_cell_is_the_card,
        lint.test_one_cell_of_parameters_sets_literals_and_nothing_else,
        lint.test_scrubbed_and_valid,
        lint.test_every_cell_ran_in_order_without_an_error,
        lint.test_no_line_of_code_scrolls_sideways,
        lint.test_every_picture_has_alt_text_and_no_output_needs_more_than_a_browser,
        lint.test_some_printed_results_are_compared_and_no_picture_is,
    ):
        rule(path)

    sheet = (tmp_path / "notebooks/exercises/README.md").read_text(encoding="utf-8")
    assert sheet.splitlines()[-1].startswith(
        "| [16.1](16_my_question.ipynb) | what the scores add up to | scaffold | 1 of 5 | 5 |"
    )
    for student, folder in (("ann", "notebooks"), ("bob", "notebooks/exercises")):
        (tmp_path / "hand-ins" / student).mkdir(parents=True)
        shutil.copy(tmp_path / folder / "16_my_question.ipynb", tmp_path / "hand-ins" / student)
    said = run_here("-m", "modegpt", "course", "grade", "hand-ins")
    assert "ann, 16_my_question: 1 of 1 points" in said and "bob, 16_my_question: 0 of 1 points" in said
