"""The program as a whole: what it loads, how fast it refuses, how its help teaches, how it prints."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from modegpt.cli import app, options
from modegpt.methods import METHODS
from modegpt.study.bench.shapes import SHAPES
from modegpt.study.experiments import EXPERIMENTS, PLANS

TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("study schema", "study check figures/results/smollm2-135m.json")
REFUSED = ("compress model --ratio 7", "--nonsense", "squash")
HEAVY = ("torch", "transformers", "matplotlib", "datasets", "pandas", "numpy", "nbformat")


def verbs(command: typer.core.TyperGroup, *above: str) -> dict[tuple[str, ...], object]:
    """Every verb by its words, those of groups too."""
    found = {}
    for name, verb in command.commands.items():
        found |= verbs(verb, *above, name) if hasattr(verb, "commands") else {(*above, name): verb}
    return found


VERBS = verbs(typer.main.get_command(app))


@pytest.mark.slow
@pytest.mark.parametrize("words", ["", "--help", "compress --help", "study claims --help", *CHECKS, *REFUSED])
def test_help_refusals_and_checks_load_nothing_heavy(words):
    code = f"import sys; sys.argv = {['modegpt', *words.split()]!r}\n"
    code += "try:\n    from modegpt.cli import main; main()\nfinally:\n"
    code += f"    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.returncode == (2 if words in REFUSED else 0)


def test_the_names_that_help_shows_are_those_of_the_tables():
    assert options.METHODS == tuple(METHODS)
    assert options.SHAPES == tuple(SHAPES)
    assert options.EXPERIMENTS == tuple(EXPERIMENTS)
    assert options.PLANS == tuple(PLANS)


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_explains_every_option_and_gives_an_example_that_is_right(modegpt, words):
    done = modegpt(*words, "--help")
    assert done.code == 0 and done.err == ""
    text = " ".join(done.out.replace("│", " ").split())
    for parameter in VERBS[words].params:
        assert parameter.help, f"{parameter.name} has no help"
        assert parameter.help.split()[0] in text
        assert all(option in text for option in parameter.opts if option.startswith("--"))
    examples = re.findall(rf"^ +modegpt {' '.join(words)}\b(.*)$", VERBS[words].callback.__doc__, re.M)
    assert examples, "no example"
    for example in examples:
        VERBS[words].make_context("modegpt", shlex.split(example.split(">")[0]))  # its options exist


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_the_help_lists_them_all(modegpt, arguments):
    done = modegpt(*arguments)
    assert done.code == 0 and done.err == ""
    assert all(words[0] in done.out for words in VERBS)


def test_an_ascii_terminal_shows_a_question_mark_and_the_results_are_kept(dense_folder, text_file, tmp_path):
    words = ["evaluate", str(dense_folder), "--text", str(text_file), "--windows", "2", "--seq-len", "32"]
    words += ["--json", str(tmp_path / "e.json"), "--device", "cpu"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modegpt", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"perplexity \d+\.\d+ \? \d", done.stdout) and (tmp_path / "e.json").is_file()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is many"),
        (TORCHRUN | {"RANK": "x"}, "RANK is x"),
    ],
)
def test_half_of_torchruns_variables_are_one_line(modegpt, dense_folder, tmp_path, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = modegpt("compress", dense_folder, "--ratio", 0.3, "--out", tmp_path / "small")
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1
    assert "ratio" in modegpt("compress", dense_folder, "--ratio", 7, "--out", tmp_path / "small").err


def test_the_working_folder_is_gone(modegpt, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = modegpt("compress", "opt-mini", "--ratio", 0.3, "--out", "small")
    monkeypatch.chdir(tmp_path)
    assert (done.code, done.err) == (2, "modegpt: the folder that this runs in is gone: go to one that exists\n")


def test_a_prompt_that_is_not_utf_8_is_one_line(modegpt):
    done = modegpt("generate", "opt-mini", "caf\udce9")
    assert done.code == 2 and "not UTF-8" in done.err and done.err.count("\n") == 1


def test_what_lies_beside_a_results_file_is_not_overwritten(modegpt, tmp_path):
    (tmp_path / "notes.md").write_text("my thesis")
    words = ["compare", "opt-mini", "--out", tmp_path / "notes.json", "--methods", "svd", "--ratios", 0.3]
    done = modegpt(*words)
    assert done.code == 2 and "notes.md would be replaced" in done.err and done.out == ""
    assert [path.read_text() for path in Path(tmp_path).iterdir()] == ["my thesis"]


@pytest.mark.parametrize("word", ["--json=/mnt/x/a.json", "--calibration=./texts/a.txt", "/mnt/x/a.json"])
def test_no_place_travels_with_a_command(monkeypatch, word):
    from modegpt.console import command_line

    monkeypatch.setattr(sys, "argv", ["modegpt", "compress", word, "0.3"])
    assert "/" not in command_line(places=False) and word.rsplit("/", 1)[1] in command_line(places=False)
    assert word in command_line()
