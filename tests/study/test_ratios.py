import subprocess
import tempfile
from pathlib import Path

import pytest

from modegpt.study import ratios
from modegpt.study.figures import perplexity_against_ratio
from modegpt.study.results import Results, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(modegpt, dense_folder, text_file, tmp_path, one_thread):
    """Runs `modegpt study ratios` on the tiny model and returns its results."""

    def call(**options) -> Results:
        words = {"model": dense_folder, "ratios": "0.2,0.4", "calibration": text_file, "text": text_file, "samples": 4}
        words |= {"calibration-length": 64, "windows": 2, "device": "cpu", "out": tmp_path} | options
        arguments = [str(part) for name, value in words.items() for part in (f"--{name}", value)]
        done = modegpt("study", "ratios", *arguments)
        assert done.code == 0, done.err
        return load(tmp_path / "results" / "dense.json")

    return call


def test_every_ratio_is_measured_and_written(run, tmp_path):
    results = run()
    rows = results.rows
    assert [(row.method, row.ratio) for row in rows] == [("dense", 0.0), ("modegpt", 0.2), ("modegpt", 0.4)]
    sizes = [(row.details["parameters"], row.details["disk_bytes"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert all(row.value > 1 and row.details["tokens"] == 2 * 2047 for row in rows)
    table = (tmp_path / "results" / "dense.md").read_text()
    assert all(f"{row.value:.2f}" in table for row in rows)
    assert (tmp_path / "dense.png").stat().st_size > 10_000
    assert not list(tmp_path.rglob(".*"))


def test_an_interrupted_run_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    measure, measured = ratios._measure, []

    def interrupted(*arguments):
        measured.append(arguments[3])
        if measured == [0.0, 0.2, 0.4]:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(ratios, "_measure", interrupted)
    with pytest.raises(AssertionError):
        run()
    assert not (tmp_path / "results" / "dense.json").exists()
    resumed = run()
    assert measured == [0.0, 0.2, 0.4, 0.4]
    again = run()
    assert measured == [0.0, 0.2, 0.4, 0.4, 0.0, 0.2, 0.4]  # a finished run is measured anew
    assert [row.value for row in again.rows] == [row.value for row in resumed.rows]


def committed(name: str) -> str:
    """A committed results file, whatever a run on this machine has written over it since."""
    shown = subprocess.run(["git", "show", f"HEAD:figures/results/{name}"], cwd=ROOT, capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("not a git checkout")
    return shown.stdout


def committed_results(name: str) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(committed(name))
        return load(file)


def test_figure_shows_the_saved_numbers():
    results = committed_results("smollm2-135m.json")
    left, right = perplexity_against_ratio(results).axes
    line = left.lines[0]
    assert list(line.get_ydata()) == [row.value for row in results.rows]
    assert list(line.get_xdata()) == [100 * row.ratio for row in results.rows]
    drawn = [list(line.get_ydata()) for line in right.lines]
    assert drawn == [[100 * phi for phi in row.details["sparsity"]] for row in results.rows[1:]]


def test_one_window_has_no_spread_and_valid_json(run, tmp_path):
    assert [row.spread for row in run(windows=1).rows] == [None] * 3
    assert "±" not in (tmp_path / "results" / "dense.md").read_text()
