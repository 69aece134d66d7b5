import base64
import dataclasses
import html
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from nbformat.v4 import new_notebook, writes

from modegpt.cli import app, study
from modegpt.errors import ModegptError
from modegpt.study import reproduce
from modegpt.study.experiments import PLANS
from modegpt.study.findings import findings
from modegpt.study.report import write_report
from modegpt.study.reproduce import Reference, expect, measured, read_expected, steps, verify
from modegpt.study.results import Results, Row, load, save
from modegpt.study.steps import Done, Step, _closure

SCHEMA = "modegpt.study.results"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def saved(folder: Path, value: float = 20.0, name: str = "a") -> Path:
    fields = {"model": "smollm2-135m", "method": "modegpt", "ratio": 0.3, "seed": 0}
    rows = [
        Row(what="perplexity", unit="", value=value, data="wikitext2", **fields),
        Row(what="accuracy", unit="share", value=0.5, spread=0.01, data="piqa", **fields),
        Row(what="time", unit="s", value=3.0, **fields),
    ]
    return save(Results.now("compare", "a run", {}, rows, "cpu", "a command"), folder / "results" / f"{name}.json")


def told(folder: Path) -> tuple[dict, str]:
    """The report of a run: as JSON and as HTML."""
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty figures folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures/results").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def plan(here, monkeypatch):
    """A profile of three real commands that need no torch: one that works, one that is not there, one that works."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    known = [
        Step("first", ("study", "--help"), SCHEMA, required=True),
        Step("not there", ("study", "nothing"), SCHEMA),
        Step("last", ("study", "--help"), SCHEMA),
    ]
    monkeypatch.setattr(reproduce, "steps", lambda *_: iter(known))
    return known


@pytest.mark.slow
def test_a_failing_step_is_marked_and_counted_and_only_it_is_tried_again(plan, here, capsys):
    reproduce.run("cpu", None, None)
    place = here / "figures/reproduction/cpu"
    plain, page = told(place)
    assert plain["summary"].endswith("; 1 step failed: not there") and plain["summary"] in html.unescape(page)
    assert plain["summary"] in capsys.readouterr().out
    assert [bool(step["problem"]) for step in plain["steps"]] == [False, True, False]
    assert "No such command 'nothing'" in plain["steps"][1]["problem"] and ">failed</b>" in page
    assert all(step["seconds"] > 0 for step in plain["steps"])
    reproduce.run("cpu", None, None)
    again = capsys.readouterr().out
    assert "first: finished before" in again and "last: finished before" in again
    assert "not there: modegpt study nothing" in again
    plan[0] = dataclasses.replace(plan[0], words=("study", "--help-me"))
    with pytest.raises(ModegptError, match="failed: first"):
        reproduce.run("cpu", None, None)
    assert "first: modegpt study --help-me (again: what it uses has changed)" in capsys.readouterr().out
    assert told(place)[0]["summary"].endswith("; 2 steps failed: first, not there")


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_step_that_it_was_at(plan, here, capsys):
    """Killed outright, as a machine that is taken away kills it."""
    notebook = here / "03_tiny.ipynb"
    os.mkfifo(notebook)  # the step waits for what nobody writes
    plan[1:] = [Step("slow", ("course", "exercises", "--folder", str(here)), SCHEMA, required=True)]
    program = f"from modegpt.study import reproduce\nfrom modegpt.study.steps import Step\nplan = {plan!r}\n"
    program += "reproduce.steps = lambda *_: iter(plan)\nreproduce.run('cpu')"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=here, stdout=subprocess.PIPE, start_new_session=True
    ) as first:
        assert any(line.startswith(b"slow: ") for line in first.stdout)
        os.killpg(first.pid, signal.SIGKILL)
    notebook.unlink()
    notebook.write_text(writes(new_notebook()))
    reproduce.run("cpu")
    again = capsys.readouterr().out
    assert "first: finished before" in again and "slow: modegpt course exercises" in again
    assert [bool(step["problem"]) for step in told(here / "figures/reproduction/cpu")[0]["steps"]] == [False, False]


@pytest.mark.parametrize("profile", reproduce.PROFILES)
def test_the_profiles_name_commands_that_exist(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = list(steps(profile, Path("out"), "a/model"))
    assert len({step.slug for step in plan}) == len(plan)
    program = typer.main.get_command(app)
    for step in plan:
        assert _closure([step.module]) != _closure([])  # it is there
        verb = program
        for word in step.words[: 1 + (step.words[0] in ("study", "bench", "course"))]:
            verb = verb.commands[word]
        verb.make_context(step.words[0], list(step.words[1 + (step.words[0] != "compare") :]))  # the options exist


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


@pytest.mark.parametrize(
    ("profile", "model", "data", "message"),
    [
        ("gpu", None, None, "takes a CUDA GPU, and torch sees none"),
        ("paper", "no_such.folder/", None, "no model 'no_such.folder/'"),
        ("paper", "opt-mini", "empty", r"MODEGPT_DATA_DIR .* has no wikitext2-raw/wiki.train.raw"),
    ],
)
def test_what_is_lacking_is_said_before_the_first_step(here, monkeypatch, profile, model, data, message):
    if data:
        (here / data).mkdir()
        monkeypatch.setenv("MODEGPT_DATA_DIR", str(here / data))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModegptError, match=message):
        reproduce.run(profile, model)
    assert not (here / "figures/reproduction").exists()


def test_verify_passes_within_and_fails_beyond_the_tolerance(here, capsys):
    place = here / "figures/reproduction/cpu"
    saved(place)
    expect("cpu", None)
    expected = read_expected(here / "figures/expected.cpu.json")
    assert sorted(e.tolerance for e in expected.values.values()) == [pytest.approx(0.02), pytest.approx(0.6)]
    assert "threads" in expected.machine
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
        ('{}, "seconds": {"a": NaN}', r"seconds\.a: Input should be a finite number"),
        ("[]", "Input should be an object"),
        ("[", "Invalid JSON"),
    ],
)
def test_expected_values_that_prove_nothing_are_an_error(here, expected, message):
    saved(here / "figures/reproduction/cpu")
    (here / "figures/expected.cpu.json").write_text(f'{{"values": {expected}}}')
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
    file.write_text(re.sub(r'"value": NaN', '"value": 1.0', file.read_text()))
    with pytest.raises(ModegptError, match=r"a\.json was changed after it was measured"):
        verify("cpu", None)
    file.unlink()
    plain = load(saved(place))
    save(dataclasses.replace(plain, rows=[dataclasses.replace(row, value=None) for row in plain.rows]), file)
    with pytest.raises(ModegptError, match="2 of 2 values are missing"):  # a run that overflowed
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


CHANGED = {
    "damaged": lambda text: '{"title": 3}',
    "not finite": lambda text: text.replace('"value": 20.0', '"value": NaN'),
    "edited": lambda text: text.replace('"value": 20.0', '"value": 10.0'),
}


@pytest.mark.parametrize("kind", CHANGED)
@pytest.mark.parametrize("place", ["figures/reproduction/cpu/results/b.json", "figures/results/b.json"])
def test_results_that_are_damaged_or_edited_are_named_and_never_counted(here, kind, place):
    run = here / "figures/reproduction/cpu"
    for file in (saved(run), saved(run, name="b")):
        (here / "figures/results" / file.name).write_bytes(file.read_bytes())
    (here / place).write_text(CHANGED[kind]((here / place).read_text()))
    done = [Done("all", "a command", 1.0, results=("results/a.json", "results/b.json"))]
    report = write_report(run, "cpu", done, here / "figures/results")
    assert report.summary.endswith("; 1 results file left out")
    plain, page = told(run)
    assert len(plain["left_out"]) == 1 and "b.json" in plain["left_out"][0]
    assert html.escape(plain["left_out"][0], quote=False)[:40] in page
    assert page.count("<caption>") == 1 + ("reproduction" not in place)
    if "reproduction" in place:
        with pytest.raises(ModegptError, match=r"b\.json"):
            measured(run)


def test_results_of_no_step_are_named_and_never_counted(here):
    """An older plan left them there, or a hand."""
    run = here / "figures/reproduction/cpu"
    saved(run), saved(run, name="b")
    done = [Done("all", "a command", 1.0, results=("results/a.json",))]
    write_report(run, "cpu", done, here / "figures/results")
    plain, page = told(run)
    assert plain["summary"].endswith("; 1 results file left out") and "b.json" in plain["left_out"][0]
    assert page.count("<caption>") == 1


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[dict, str]:
    """The report of a run that measured what the kit's own results hold of SmolLM2, or some of it."""
    place = tmp_path_factory.mktemp("run")
    (place / "results").mkdir()
    names = []
    for file in (ROOT / "figures/results").glob("smollm2-135m.[am]*.json"):
        (place / "results" / file.name).write_bytes(file.read_bytes())
        names.append(f"results/{file.name}")
    (place / "smollm2-135m.allocation.png").write_bytes((ROOT / "figures/smollm2-135m.allocation.png").read_bytes())
    steps = [Done("claims", "c", 9.0, 17.0, "cut <short>", tuple(names))]
    write_report(place, "cpu", steps, ROOT / "figures/results", {"claims": 8.0})
    return told(place)


def test_the_report_has_a_card_for_each_claim_and_says_where_its_verdict_is_from(report):
    plain, page = report
    kit = findings([load(file) for file in (ROOT / "figures/results").glob("*.json")])
    assert [claim["claim"] for claim in plain["claims"]] == [f.claim for f in kit if f.source]
    assert page.count("<article") == len(plain["claims"]) == int(plain["summary"].split()[0])
    by_claim = {claim["claim"]: claim for claim in plain["claims"]}
    own = by_claim["Global against uniform allocation at 30 %: perplexity"]
    assert own["decided_by"] == "this run" and own["numbers"][0]["paper"] == 0.17
    other = by_claim["Zero-shot accuracy kept at 25 to 30 %"]
    assert other["decided_by"] == "the kit's results" and other["where"] == "NVIDIA H100 80GB HBM3, 2026-11-24"
    for claim in plain["claims"]:
        assert claim["claim"] in html.unescape(page) and claim["why"] and bool(claim["where"]) == bool(claim["ours"])
    assert {claim["source"] for claim in plain["claims"]} == {"MoDeGPT", "FWSVD"}
    assert "cut &lt;short&gt;" in page and ">17</td>" in page and ">8</td>" in page  # seconds here and elsewhere


def test_the_page_asks_nothing_of_anywhere_and_suits_dark_rooms_and_phones(report):
    _, page = report
    assert not re.findall(r"""(?:src|href)=["']?(?!["']?data:)|https?://|@import|url\(""", page)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]+"', page)
    assert pictures and all(base64.b64decode(text).startswith(b"\x89PNG") for text in pictures)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and page.count("<details>") > 2


def test_how_long_a_step_takes_is_told_from_another_machine_at_the_pace_of_this_one():
    known = Reference(values={}, seconds={"a": 60.0, "b": 600.0, "c": 30.0}, machine="EPYC")
    assert known.ahead(["a", "b", "c"], []) == "took 60 s on EPYC; all that is left: about 12 min"
    done = [Done("a", "", 120.0)]
    assert known.ahead(["b", "c"], done) == "took 10 min on EPYC; all that is left: about 21 min"
    assert known.ahead(["b", "new"], done) == ""


@pytest.mark.slow
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
    small = dataclasses.replace(PLANS["paper"], samples=4, calibration_length=64, questions=2, ratios=(0.2, 0.3))
    monkeypatch.setitem(PLANS, "paper", dataclasses.replace(small, seq_len=128, lengths=(64, 128)))
    plan = list(steps("paper", tmp_path / "out", str(model)))
    for step in plan:
        assert modegpt(*step.words).code == 0
    files = [load(file) for file in (tmp_path / "out/results").glob("Llama-2-7b-hf.*.json")]
    assert len(files) == len(plan) and not [row.error for results in files for row in results.rows if row.error]
    made = tuple(f"results/Llama-2-7b-hf.{results.experiment}.json" for results in files)
    done = [Done("all", "a command", 1.0, results=made)]
    summary = write_report(tmp_path / "out", "paper", done, tmp_path / "none").summary
    assert "claims: " in summary and (tmp_path / "out/Llama-2-7b-hf.allocation.png").exists()
    (draws,) = [results for results in files if results.experiment == "allocation"]
    assert [len(draws.find(ratio=ratio)) for ratio in (0.2, 0.3)] == [2, 6]  # three draws where a claim asks for them
    told = {claim["claim"]: claim for claim in json.loads((tmp_path / "out/report.json").read_text())["claims"]}
    assert "one draw" not in told["Global against uniform allocation at 30 %: perplexity"]["why"]
