import dataclasses
import json
import re
from pathlib import Path

import pytest
import typer

from modegpt.cli import app, study
from modegpt.errors import ModegptError
from modegpt.study import reproduce
from modegpt.study.experiments import PLANS
from modegpt.study.findings import findings
from modegpt.study.report import HONESTY, Done, as_html, write_report
from modegpt.study.reproduce import expect, measured, steps, verify
from modegpt.study.results import Results, Row, load, save
from modegpt.study.steps import Step, _closure

SCHEMA = "modegpt.study.results"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def saved(folder: Path, value: float = 20.0, name: str = "a") -> None:
    fields = {"model": "smollm2-135m", "method": "modegpt", "ratio": 0.3, "seed": 0}
    rows = [
        Row(what="perplexity", unit="", value=value, data="wikitext2", **fields),
        Row(what="accuracy", unit="share", value=0.5, spread=0.01, data="piqa", **fields),
        Row(what="time", unit="s", value=3.0, **fields),
    ]
    save(Results.now("compare", "a run", {}, rows, "cpu", "a command"), folder / "results" / f"{name}.json")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty figures folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures/results").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def plan(here, monkeypatch):
    """A profile of three real commands: one that works, one that is not there, one that works."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    known = [
        Step("first", ("study", "schema"), SCHEMA, required=True),
        Step("not there", ("study", "nothing"), SCHEMA),
        Step("last", ("study", "schema"), SCHEMA),
    ]
    monkeypatch.setattr(reproduce, "steps", lambda *_: iter(known))
    return known


@pytest.mark.slow
def test_a_failing_step_is_marked_and_the_report_comes_out(plan, here):
    saved(here / "figures/reproduction/cpu")
    reproduce.run("cpu", None, None)
    report = (here / "figures/reproduction/cpu/report.md").read_text()
    assert re.search(r"\| first \| \d+ \| finished \| `modegpt study schema` \|", report)
    assert re.search(r"\| not there \| \d+ \| \*\*failed\*\*: .*No such command 'nothing'", report)
    assert "| last |" in report and HONESTY.splitlines()[0] in report
    assert "# Reproduction report" in report and "not testable here" in report


@pytest.mark.slow
def test_finished_steps_are_not_repeated_and_failed_ones_are(plan, here, capsys):
    reproduce.run("cpu", None, None)
    capsys.readouterr()
    reproduce.run("cpu", None, None)
    again = capsys.readouterr().out
    assert "first: finished before" in again and "last: finished before" in again
    assert "not there: modegpt study nothing" in again


@pytest.mark.slow
def test_a_step_is_done_again_when_its_command_changes(plan, here, capsys):
    reproduce.run("cpu", None, None)
    plan[0] = dataclasses.replace(plan[0], words=("study", "schema", "--help-me"))
    capsys.readouterr()
    with pytest.raises(ModegptError, match="failed: first"):
        reproduce.run("cpu", None, None)
    assert "first: modegpt study schema --help-me" in capsys.readouterr().out
    assert "**failed**" in (here / "figures/reproduction/cpu/report.md").read_text()


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_profiles_name_commands_that_exist(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = list(steps(profile, Path("out"), None))
    program = typer.main.get_command(app)
    for step in plan:
        assert _closure([step.module]) != _closure([])  # it is there
        verb = program
        for word in step.words[: 1 + (step.words[0] in ("study", "bench", "course"))]:
            verb = verb.commands[word]
        verb.make_context(step.words[0], list(step.words[1 + (step.words[0] != "compare") :]))  # the options exist
    notebooks = [step.words[2] for step in plan if step.words[0] == "course"]
    assert "00_start_here" in notebooks and all((ROOT / f"notebooks/{name}.ipynb").exists() for name in notebooks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tpu", None, None), "unknown profile 'tpu': use cpu, gpu, paper"),
        (("paper", None, None), "--model is for the profile paper, which needs it"),
        (("cpu", "some/model", None), "--model is for the profile paper"),
    ],
)
def test_bad_options(here, arguments, message):
    with pytest.raises(ModegptError, match=message):
        study.reproduce(*arguments)


def test_verify_passes_within_and_fails_beyond_the_tolerance(here, capsys):
    place = here / "figures/reproduction/cpu"
    saved(place)
    expect("cpu", None)
    expected = json.loads((here / "figures/expected.cpu.json").read_text())
    assert sorted(entry["tolerance"] for entry in expected.values()) == [pytest.approx(0.02), pytest.approx(0.6)]
    verify("cpu", None)
    assert "2 of 2 values are as expected" in capsys.readouterr().out
    saved(place, value=20.5)
    verify("cpu", None)
    saved(place, value=20.7)
    with pytest.raises(ModegptError, match="1 of 2 values are missing or beyond"):
        verify("cpu", None)
    assert "20.7, expected 20 ± 0.6" in capsys.readouterr().err


def test_verify_wants_a_run_and_expected_values(here):
    with pytest.raises(ModegptError, match="run `make reproduce` first"):
        verify("cpu", None)
    saved(here / "figures/reproduction/cpu")
    with pytest.raises(ModegptError, match="no expected values"):
        verify("cpu", None)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ("{}", "no expected values"),
        ('{"a": {"value": NaN, "tolerance": 1.0}}', r"a\.value: Input should be a finite number"),
        ('{"a": {"value": 1.0, "tolerance": Infinity}}', r"a\.tolerance: Input should be a finite number"),
        ('{"a": {"value": "1.0", "tolerance": 1.0}}', r"a\.value: Input should be a valid number"),
        ('{"a": {"value": 1.0}}', r"a\.tolerance: Field required"),
        ("[]", "Input should be an object"),
        ("[", "Invalid JSON"),
    ],
)
def test_expected_values_that_prove_nothing_are_an_error(here, expected, message):
    saved(here / "figures/reproduction/cpu")
    (here / "figures/expected.cpu.json").write_text(expected)
    with pytest.raises(ModegptError, match=message):
        verify("cpu", None)


def test_a_run_of_nan_is_never_as_expected(here):
    place = here / "figures/reproduction/cpu"
    saved(place)
    expect("cpu", None)
    (file,) = (place / "results").glob("*.json")
    file.write_text(re.sub(r'"value": [\d.]+', '"value": NaN', file.read_text()))
    with pytest.raises(ModegptError, match=r"rows\.0\.value: Input should be a finite number"):
        verify("cpu", None)
    file.write_text(re.sub(r'"value": NaN', '"value": null', file.read_text()))  # what a run that overflowed saves
    with pytest.raises(ModegptError, match="2 of 2 values are missing"):
        verify("cpu", None)


def test_a_number_that_is_gone_fails_too(here, capsys):
    place = here / "figures/reproduction/cpu"
    saved(place, name="b")
    expect("cpu", None)
    (place / "results/b.json").unlink()
    results = Results.now("other", "", {}, [Row(what="speed-up", unit="", value=1.0, model="", method="")], "cpu", "")
    save(results, place / "results/c.json")
    with pytest.raises(ModegptError, match="2 of 2"):
        verify("cpu", None)
    assert "missing: compare: " in capsys.readouterr().err


def test_a_damaged_results_file_is_marked_and_the_rest_reported(here):
    place = here / "figures/reproduction/cpu"
    saved(place)
    (place / "results/bad.json").write_text('{"title": 3}')
    report = write_report(place, "cpu", [Done("all", "a command", 1.0)], here / "figures/results")
    text = report.with_suffix(".md").read_text()
    assert "**Left out:**" in text and "bad.json is no results file" in text and "### a run" in text
    with pytest.raises(ModegptError, match=r"bad\.json is no results file"):
        measured(place)


def test_the_report_of_the_committed_results_shows_tables_and_pictures(tmp_path):
    place = tmp_path / "run"
    (place / "results").mkdir(parents=True)
    for file in (ROOT / "figures/results").glob("smollm2-135m.*.json"):
        (place / "results" / file.name).write_bytes(file.read_bytes())
    (place / "allocation.png").write_bytes((ROOT / "figures/smollm2-135m.allocation.png").read_bytes())
    report = write_report(place, "gpu", [Done("claims", "c", 9.0, "cut | short")], ROOT / "figures/results")
    html, text = report.read_text(), report.with_suffix(".md").read_text()
    assert "**reproduced in shape**" in text and "**not reproduced**" in text and "**not testable here**" in text
    assert "![allocation](allocation.png)" in text and "cut \\| short" in text
    assert html.count("data:image/png;base64,") == 1 and 'src="allocation.png"' not in html
    assert html.count("<table>") == text.count("\n| --- |") and "<strong>not reproduced</strong>" in html
    for finding in findings([load(file) for file in (place / "results").glob("*.json")]):
        assert finding.claim in text


def test_html_escapes_what_a_file_says(tmp_path):
    assert "<script>" not in as_html("<script>alert(1)</script>\n\n| a |\n| --- |\n| <b> |\n", tmp_path)


def test_the_papers_profile_on_a_local_folder(modegpt, dense_folder, text_file, tmp_path, monkeypatch):
    """The paper's questions to a model of its name but with random weights, and smaller: all of it runs."""
    data = tmp_path / "data"
    (data / "wikitext2-raw").mkdir(parents=True)
    (data / "c4").mkdir()
    (data / "alpaca").mkdir()
    text = text_file.read_text()
    (data / "wikitext2-raw/wiki.train.raw").write_text(text[:60_000])
    (data / "wikitext2-raw/wiki.test.raw").write_text(text[60_000:66_000])
    (data / "c4/c4_sample.txt").write_text("\n".join(text[i : i + 3000] for i in range(0, 12_000, 3000)))
    items = [{"instruction": text[i : i + 300], "input": "", "output": "yes"} for i in range(0, 12_000, 300)]
    (data / "alpaca/alpaca_data_1k.json").write_text(json.dumps(items))
    monkeypatch.setenv("MODEGPT_DATA_DIR", str(data))
    model = tmp_path / "Llama-2-7b-hf"
    model.symlink_to(dense_folder)
    small = dataclasses.replace(PLANS["paper"], samples=4, calibration_length=64, questions=2, ratios=(0.3,))
    monkeypatch.setitem(PLANS, "paper", dataclasses.replace(small, seq_len=128, lengths=(64, 128)))
    (step,) = steps("paper", tmp_path / "out", str(model))
    assert modegpt(*step.words).code == 0
    files = [load(file) for file in (tmp_path / "out/results").glob("Llama-2-7b-hf.*.json")]
    assert len(files) == 3 and not [row.error for results in files for row in results.rows if row.error]
    report = write_report(tmp_path / "out", "paper", [], tmp_path / "none").with_suffix(".md").read_text()
    assert "![Llama-2-7b-hf.allocation]" in report
