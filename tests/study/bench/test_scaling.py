"""`modegpt bench scaling`: rows of real launches on the CPU, and what they say when ranks disagree or fail."""

import copy

import pytest
import torch

from modegpt.errors import ModegptError
from modegpt.study.bench import scaling
from modegpt.study.bench.compress import time_compression
from modegpt.study.bench.scaling import launch, quality_rows, scaling_rows
from modegpt.study.results import load

CPU = torch.device("cpu")
SMALL = {"ratio": 0.3, "samples": 6, "length": 24, "batch_size": 2, "walks": 2}


@pytest.fixture(autouse=True)
def alone_on_the_loopback(monkeypatch):
    for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def run():
    found = time_compression("tiny-llama", CPU, **SMALL)
    found["seconds"] = {"total": 8.0, "calibrate": 6.0, "decompose": 1.0}
    return found


def test_speed_ups_are_against_the_fewest_ranks(run):
    faster = copy.deepcopy(run)
    faster["seconds"] = {"total": 5.0, "calibrate": 3.0, "decompose": 2.0}
    faster["peak_bytes"] = [run["peak_bytes"] + 7, run["peak_bytes"]]
    rows = scaling_rows({2: faster, 1: run})
    value = {(row.what, row.variant): row.value for row in rows}
    assert len(value) == len(rows) == 2 * 4 + 4
    assert value["speed-up: total", "2 ranks against 1"] == 1.6
    assert value["speed-up: calibrate", "2 ranks against 1"] == 2
    assert value["speed-up: decompose", "2 ranks against 1"] == 0.5
    assert value["layers that keep the same channels and dims", "2 ranks against 1"] == 1
    peaks = [value["peak memory above the model", f"{ranks} ranks"] for ranks in (1, 2)]
    assert peaks[1] - peaks[0] == 7  # the fullest GPU counts


def test_ranks_that_keep_something_else_show(run):
    other = copy.deepcopy(run)
    other["kept"][1] += 1e-3
    rows = scaling_rows({1: run, 2: other})
    assert [row.value for row in rows if row.unit == "share"] == [0.5]
    other["kept"].pop()
    with pytest.raises(ValueError, match="zip"):
        scaling_rows({1: run, 2: other})


def test_perplexities_stand_side_by_side_with_what_was_kept():
    found = {n: {"perplexity": 20.0 + n, "standard_error": 0.5, "kept": [1.0, 2.0, 3.0, float(n)]} for n in (1, 2)}
    one, two, same = quality_rows(found, "opt-mini", 0.3)
    assert (one.value, two.value) == (21, 22) and one.key != two.key
    assert one.spread == 0.5 and one.spread_over == "windows" and one.model == "opt-mini"
    assert (same.what, same.value) == ("layers that keep the same channels and dims", 0.75)
    assert same.variant == "2 ranks against 1"


@pytest.mark.slow
def test_one_and_two_ranks_on_the_cpu(modegpt, tmp_path, monkeypatch):
    """Two are launched as on GPUs, by torchrun, gloo in place of NCCL; one works in this process."""
    own_for_one = {1: lambda job, _: scaling.work(job), 2: launch}
    monkeypatch.setattr("modegpt.study.bench.jobs.launch", lambda job, ranks: own_for_one[ranks](job, ranks))
    file = tmp_path / "scaling.json"
    sizes = ["--samples", 6, "--length", 24, "--batch-size", 2, "--device", "cpu", "--model", "none"]
    ended = modegpt("bench", "scaling", "--shapes", "tiny-llama", "--ranks", "1,2", "--out", file, *sizes)
    assert ended.code == 0, ended.err
    results = load(file)
    assert not [row.error for row in results.rows if row.error]
    whole = {row.variant: row for row in results.find(what="compression")}
    assert whole.keys() == {"1 ranks", "2 ranks"}
    assert len(whole["2 ranks"].details["peak_bytes"]) == 2
    (same,) = results.find(what="layers that keep the same channels and dims")
    assert same.value == 1
    (speed_up,) = results.find(what="speed-up: total")
    assert speed_up.value == pytest.approx(whole["1 ranks"].value / whole["2 ranks"].value)


@pytest.mark.slow
def test_a_failed_launch_says_why():
    with pytest.raises(ModegptError, match=r"1 ranks failed: .*unknown shape 'gpt'"):
        launch({"device": "cpu", "shape": "gpt", "options": SMALL}, 1)


def test_a_launch_that_fails_leaves_its_reason_and_the_next_shape_goes_on(modegpt, tmp_path, monkeypatch, run):
    def launched(job, ranks):
        if job["shape"] == "tiny-opt" and ranks == 2:
            raise ModegptError("2 ranks failed: no luck")
        return run | {"shape": job["shape"]}

    monkeypatch.setattr("modegpt.study.bench.jobs.launch", launched)
    file = tmp_path / "scaling.json"
    command = ["bench", "scaling", "--shapes", "tiny-opt,tiny-llama", "--ranks", "1,2", "--model", "none"]
    ended = modegpt(*command, "--device", "cpu", "--out", file)
    assert ended.code == 0 and "no luck" in ended.err
    results = load(file)
    (failed,) = [row for row in results.rows if row.value is None]
    assert failed.error == "2 ranks failed: no luck" and failed.model == "tiny-opt"
    assert len(results.find(model="tiny-llama")) == 2 * 4 + 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ranks", "0,1"], "--ranks takes numbers from 1"),
        (["--ranks", "two"], "--ranks takes numbers from 1"),
        (["--shapes", "gpt"], "unknown shape 'gpt'"),
        (["--device", "cuda"], "no device 'cuda'"),
    ],
    ids=str,
)
def test_a_bad_option_is_one_line(modegpt, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr("modegpt.study.bench.jobs.launch", None)
    ended = modegpt("bench", "scaling", "--out", tmp_path / "scaling.json", "--device", "cpu", *options)
    assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_work_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(scaling, "MINUTES", 0.001)
    with pytest.raises(ModegptError, match=r"1 ranks were not done after 0\.001 minutes"):
        launch({"device": "cpu", "shape": "tiny-llama", "options": SMALL}, 1)
