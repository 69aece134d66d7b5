"""`modegpt bench compress` on tiny shapes: its rows say what the compression did, and one that fails stops no other."""

import json

import pytest
import torch

from modegpt.errors import ModegptError
from modegpt.study.bench import floors, jobs
from modegpt.study.bench.compress import compression_rows, memory_trace, time_compression
from modegpt.study.bench.shapes import random_model
from modegpt.study.results import load

CPU = torch.device("cpu")
SMALL = {"ratio": 0.3, "samples": 6, "length": 24, "batch_size": 2}
OPTIONS = ["--samples", 6, "--length", 24, "--batch-size", 2, "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def small_products():
    """The device's rates come from small matrices: at the real size, bfloat16 takes some CPUs ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(floors.SIZE, "cpu", 128)
        yield


@pytest.fixture(scope="module")
def results(modegpt, tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "compress.json"
    ended = modegpt("bench", "compress", "--shapes", "tiny-llama,tiny-opt", "--walks", "1,2", "--out", file, *OPTIONS)
    assert ended.code == 0, ended.err
    return load(file)


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt"])
@pytest.mark.parametrize("variant", ["1 walk", "2 walks"])
def test_every_shape_and_variant_has_its_steps_within_the_whole(results, shape, variant):
    found = {row.what: row for row in results.find(model=shape, variant=variant)}
    whole = found["compression"]
    steps = [found[f"compression: {step}"].value for step in ("calibrate", "decompose")]
    assert min(steps) > 0 and sum(steps) <= whole.value
    details, model = whole.details, random_model(shape, device="cpu")
    assert details["tokens"] == 6 * 24 and details["layers"] == details["of_layers"] == 2
    assert details["model_bytes"] == 2 * sum(p.numel() for p in model.parameters())
    assert details["ratio"] == pytest.approx(0.3, abs=0.03) and whole.ratio == 0.3
    assert {row.unit for row in found.values()} == {"s", "bytes", "share"}
    parts = [found[f"floor: {step}"].value for step in ("forward", "Gram matrices", "solves", "copies")]
    assert min(parts) > 0
    share = found["share of the limit: total"].value
    assert share == pytest.approx(min(sum(parts) / whole.value, 1))
    assert all(row.error is None and row.data == "random tokens" for row in found.values())
    assert results.settings == SMALL


def test_one_and_two_walks_keep_the_same(one_thread):
    for shape in ("tiny-llama", "tiny-opt"):
        once, twice = (time_compression(shape, CPU, walks=walks, **SMALL) for walks in (1, 2))
        assert once["kept"] == twice["kept"] and len(once["kept"]) == 2
        other = time_compression(shape, CPU, walks=1, **SMALL | {"ratio": 0.5})
        assert all(a != b for a, b in zip(once["kept"], other["kept"], strict=True))  # else it would compare nothing


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt"])
def test_a_streamed_run_removes_what_one_in_memory_does(one_thread, shape):
    whole, streamed = (time_compression(shape, CPU, stream=stream, **SMALL) for stream in (False, True))
    assert streamed["ratio"] == whole["ratio"] and streamed["tokens"] == whole["tokens"]
    rows = {row.what: row for row in compression_rows(streamed, "streamed")}
    assert rows["peak memory"].value == streamed["peak_bytes"]  # the model is not in memory, so nothing is taken off
    in_memory = {row.what: row.value for row in compression_rows(whole, "2 walks")}
    assert in_memory["peak memory above the model"] == whole["peak_bytes"] - whole["model_bytes"]


def test_a_part_of_the_layers_says_of_how_many(modegpt, tmp_path):
    file = tmp_path / "part.json"
    ended = modegpt("bench", "compress", "--shapes", "tiny-llama", "--layers", 1, "--stream", "--out", file, *OPTIONS)
    assert ended.code == 0, ended.err
    (whole,) = load(file).find(what="compression")
    assert whole.variant == "streamed, 1 of 2 layers"
    assert (whole.details["layers"], whole.details["of_layers"]) == (1, 2)


@pytest.mark.parametrize(
    "error", [ModegptError("no such luck"), torch.OutOfMemoryError("CUDA out of memory.\nTried 3 GiB")], ids=repr
)
def test_a_shape_that_fails_leaves_its_reason_and_the_others_go_on(modegpt, tmp_path, monkeypatch, error):
    def fails(shape, *arguments, **options):
        if shape == "tiny-llama":
            raise error
        return time_compression(shape, *arguments, **options)

    monkeypatch.setattr(jobs, "time_compression", fails)
    file = tmp_path / "compress.json"
    ended = modegpt("bench", "compress", "--shapes", "tiny-llama,tiny-opt", "--out", file, *OPTIONS)
    assert ended.code == 0 and " ".join(str(error).split()) in ended.err
    failed, *others = load(file).rows
    assert failed.value is None and failed.error == " ".join(str(error).split()) and "tiny-llama" in failed.model
    assert {row.model for row in others} == {"tiny-opt"} and all(row.value is not None for row in others)


def test_what_is_done_is_on_disk_before_the_next_begins(modegpt, tmp_path, monkeypatch):
    def interrupted(shape, *arguments, **options):
        if shape == "tiny-opt":
            raise KeyboardInterrupt
        return time_compression(shape, *arguments, **options)

    monkeypatch.setattr(jobs, "time_compression", interrupted)
    file = tmp_path / "compress.json"
    ended = modegpt("bench", "compress", "--shapes", "tiny-llama,tiny-opt", "--out", file, *OPTIONS)
    assert ended.code == 130
    assert {row.model for row in load(file).rows} == {"tiny-llama"}
    assert [path.name for path in tmp_path.iterdir()] == ["compress.json"]


def test_results_of_another_machine_stay(modegpt, tmp_path):
    file = tmp_path / "compress.json"
    command = ["bench", "compress", "--shapes", "tiny-llama", "--out", file, *OPTIONS]
    assert modegpt(*command).code == 0
    there = json.loads(file.read_text()) | {"device": "cuda: NVIDIA H100"}
    del there["digest"]
    file.write_text(json.dumps(there))
    assert modegpt(*command).code == 0
    assert load(file).device == "cuda: NVIDIA H100"
    assert len(list(tmp_path.glob("compress.cpu*.json"))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shapes", "llama-9"], "unknown shape 'llama-9'"),
        (["--shapes", "tiny-llama", "--layers", 3], "tiny-llama has 2 layers, got 3"),
        (["--walks", "3"], "--walks takes numbers from 1 to 2, got '3'"),
        (["--ratio", 30], "got 30 (for 30 % give 0.3)"),
        (["--offload-hidden"], "--offload-hidden goes with --stream"),
        (["--device", "nonsense"], "unknown device 'nonsense'"),
        (["--samples", 0], "see --help"),
    ],
    ids=str,
)
def test_a_bad_option_is_one_line_and_nothing_is_written(modegpt, tmp_path, options, words):
    ended = modegpt("bench", "compress", "--out", tmp_path / "compress.json", *options)
    assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_results_go_into_a_json_file(modegpt, tmp_path):
    ended = modegpt("bench", "compress", "--out", tmp_path / "compress.txt", "--shapes", "tiny-llama")
    assert ended.code == 2 and "ends in .json" in ended.err


def test_memory_is_traced_while_the_block_runs():
    with memory_trace(CPU) as trace:
        held = []
        while len(trace) < 4 or trace[-1][1] <= trace[0][1] + (8 << 20):
            held.append(torch.ones(1 << 20))
    assert [at for at, _ in trace] == sorted(at for at, _ in trace)
    count = len(trace)
    assert trace[-1][1] > trace[0][1] and len(held) > 0
    torch.ones(8).sum()
    assert len(trace) == count  # the thread has ended
