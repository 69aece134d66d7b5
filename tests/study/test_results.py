import dataclasses
import json
import math
from pathlib import Path

import pytest

from modegpt.errors import ModegptError
from modegpt.files import to_json
from modegpt.study.results import Results, Row, Unfinished, committed, deviations, load, save

ROOT = Path(__file__).resolve().parents[2]


def row(value=20.0, **changes) -> Row:
    return Row(**{"what": "perplexity", "unit": "", "value": value, "model": "m", "method": "modegpt"} | changes)


@pytest.fixture
def results() -> Results:
    return Results.now("ratios", "a test", {"samples": 4}, [row(ratio=0.1), row(30.0, ratio=0.3)], "cpu", "a command")


@pytest.mark.parametrize("file", sorted((ROOT / "figures/results").glob("*.json")), ids=lambda file: file.stem)
def test_every_committed_file_follows_the_schema(file):
    found = load(file)
    assert found.rows and found.command and found.versions["torch"]
    plain = dataclasses.asdict(found)
    if not found.digest:
        del plain["digest"]
    assert to_json(plain) == file.read_text()  # nothing is lost or made up on the way


def test_what_is_saved_comes_back(results, tmp_path):
    assert load(save(results, tmp_path / "a.json")) == results
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("old", "new"), [("20.0", "19.0"), ('"samples": 4', '"samples": 5'), ("a command", "b")])
def test_what_was_changed_by_hand_is_named(results, tmp_path, old, new):
    file = save(results, tmp_path / "a.json")
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text)))  # the layout says nothing
    assert load(file) == results
    file.write_text(text.replace(old, new))
    with pytest.raises(ModegptError, match=r"a\.json was changed after it was measured"):
        load(file)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.pop("device"), "device: Field required"),
        (lambda d: d["rows"][1].update(value="30.0"), "rows.1.value: Input should be a valid number"),
        (lambda d: d["rows"][0].update(perplexity=3), "rows.0.perplexity: Unexpected keyword argument"),
        (lambda d: d["rows"][0].update(spread_over="moons"), "rows.0.spread_over: Input should be"),
        (lambda d: d.update(date="yesterday"), "the date is not like 2026-01-31"),
        (lambda d: d.update(schema=2), "schema: Input should be 1"),
        (lambda d: d["rows"].append(d["rows"][0]), "1 rows say the same as another"),
        (lambda d: d.pop("experiment"), "experiment: Field required"),
        (lambda d: d.update(experiment="Two words"), "the experiment's name is not like"),
        (lambda d: d["rows"][0].update(value=math.nan), "rows.0.value: Input should be a finite number"),
        (lambda d: d["rows"][0].update(spread=math.inf), "rows.0.spread: Input should be a finite number"),
        (lambda d: d["rows"][0].update(spread=-0.1), "rows.0: .* the spread of 'perplexity' is out of range: -0.1"),
        (lambda d: d["rows"][0].update(value=-20.0), "rows.0: .* the value of 'perplexity' is out of range: -20"),
        (lambda d: d["rows"][0].update(value=0.5), "the value of 'perplexity' is out of range"),
        (lambda d: d["rows"][0].update(what="accuracy", unit="share", value=1.2), "'accuracy' is out of range: 1.2"),
        (lambda d: d["rows"][0].update(what="time", unit="s", value=-1.0), "'time' is out of range: -1"),
        (lambda d: d["rows"][0].update(unit="furlongs"), "'perplexity' is in '', got the unit 'furlongs'"),
        (lambda d: d["rows"][0].update(what="happiness"), "'happiness' is not in UNITS"),
        (lambda d: d["rows"][0].update(ratio=7.0), r"the ratio must be in \[0, 1\), got 7"),
        (lambda d: d["rows"][0].update(ratio=1.0), "the ratio must be in"),
        (lambda d: d["rows"][0].update(ratio=-0.1), "the ratio must be in"),
        (lambda d: d["rows"][0].update(details={"deep": [math.nan]}), "settings or details hold NaN"),
        (lambda d: d["settings"].update(samples=math.inf), "settings or details hold NaN"),
    ],
)
def test_what_fails_the_schema_is_one_clear_line(results, tmp_path, change, words):
    plain = dataclasses.asdict(results)
    change(plain)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(plain))
    with pytest.raises(ModegptError, match=words) as caught:
        load(file)
    assert "bad.json is no results file" in str(caught.value) and "\n" not in str(caught.value)


def test_cut_short_or_absent_is_one_clear_line(tmp_path):
    (tmp_path / "cut.json").write_text('{"title": "a')
    with pytest.raises(ModegptError, match="Invalid JSON"):
        load(tmp_path / "cut.json")
    with pytest.raises(ModegptError, match=r"cannot read the results file .*: No such file"):
        load(tmp_path / "none.json")


def test_another_machine_writes_beside(results, tmp_path):
    file = save(results, tmp_path / "a.json")
    other = dataclasses.replace(results, device="cuda: NVIDIA H100", rows=[row(20.2, ratio=0.1)])
    beside = save(other, file)
    assert beside.name == "a.cuda-nvidia-h100.json"
    assert load(file) == results and load(beside) == other
    assert save(dataclasses.replace(results, date="2030-01-01"), file) == file  # one's own are renewed


def test_threads_are_a_part_of_a_processor_but_not_of_a_gpu(results):
    machine = dataclasses.replace(results, device="cpu: AMD EPYC", threads=2).machine
    assert machine == "cpu-amd-epyc-2"
    assert dataclasses.replace(results, device="cuda: H100", threads=16).machine == "cuda-h100"


def test_deviations_are_of_the_same_rows_and_not_of_times(results):
    rows = [row(22.0, ratio=0.1), row(30.3, ratio=0.3), row(5.0, ratio=0.9), row(9.0, what="time", unit="s")]
    mine = dataclasses.replace(results, rows=rows)
    theirs = dataclasses.replace(results, rows=[*results.rows, row(1.0, what="time", unit="s")])
    assert [(a.ratio, pytest.approx(rel)) for a, _, rel in deviations(mine, theirs)] == [(0.1, 0.1), (0.3, 0.01)]


def test_an_unfinished_run_is_taken_up_by_the_same_settings_only(tmp_path):
    file = tmp_path / "a.json"
    begun = Unfinished(file, {"seed": 0}, "cpu")
    begun.add(row(ratio=0.1), row(float("inf"), ratio=0.3))
    assert [r.value for r in Unfinished(file, {"seed": 0}, "cpu").rows] == [20.0, None]
    assert Unfinished(file, {"seed": 1}, "cpu").rows == []
    begun.file.write_text("cut sho")
    assert Unfinished(file, {"seed": 0}, "cpu").rows == []
    begun.remove()
    assert list(tmp_path.iterdir()) == []


def test_files_are_checked_and_the_schema_printed(modegpt, tmp_path):
    schema = json.loads(modegpt("study", "schema").out)
    assert set(schema["$defs"]["Row"]["properties"]) == {f.name for f in dataclasses.fields(Row)}
    (tmp_path / "bad.json").write_text("{}")
    done = modegpt("study", "check", ROOT / "figures/results/opt-mini.json", tmp_path / "bad.json")
    assert done.code == 2 and "opt-mini.json: 6 rows" in done.out
    assert done.err.startswith("modegpt: ") and len(done.err.splitlines()) == 1


def test_the_results_of_the_repository_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert committed("texts.overlap").settings == {"words": 13}
    with pytest.raises(ModegptError, match=r"cannot read the results file .*nothing\.json"):
        committed("nothing")
