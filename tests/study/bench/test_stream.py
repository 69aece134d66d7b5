"""`modegpt bench stream`: real ranks on the CPU, one run killed in the middle, and what is refused."""

import pytest

from modegpt.errors import ModegptError
from modegpt.study.bench import stream
from modegpt.study.results import load

SIZES = ["--samples", 8, "--length", 128, "--device", "cpu"]


@pytest.fixture(autouse=True)
def alone_on_the_loopback(monkeypatch):
    for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_on_the_cpu(modegpt, tmp_path, monkeypatch):
    """Launched as on GPUs, by torchrun, gloo in place of NCCL; the result is loaded in this process."""
    launch = stream.launch
    monkeypatch.setattr(stream, "launch", lambda job, *more: stream.work(job) if "load" in job else launch(job, *more))
    file, source = tmp_path / "stream.json", tmp_path / "dense"
    command = ["bench", "stream", "--shape", "smollm2-135m", "--layers", 8, "--out", file, *SIZES]
    command += ["--work", tmp_path, "--source", source]
    assert modegpt(*command, "--make-only").code == 0
    assert not file.exists()
    made = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    ended = modegpt(*command, "--ranks", 2, "--kill-after", 1)
    assert ended.code == 0, ended.err
    assert {path.name: path.stat().st_mtime_ns for path in source.iterdir()} == made
    assert {path.name for path in tmp_path.iterdir()} == {"stream.json", "dense"}  # the result was loaded, and is gone
    results = load(file)
    assert not [row.error for row in results.rows if row.error]
    (whole,) = results.find(what="compression")
    assert whole.variant.startswith("streamed, 2 ranks, 8 of 30 layers, killed after ")
    first, second = whole.details["tries"]
    assert 1 <= first["layers"] < 8 and whole.value == first["seconds"] + second["seconds"]
    assert whole.details["layers_done_before"] == first["layers"]
    assert len(whole.details["ranks"]) == 2
    value = {row.what: row.value for row in results.rows}
    assert 0 < value["compression: decompose"] < second["seconds"] > value["compression: calibrate"] > 0
    dense = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert 0.6 * dense < value["bytes written"] < dense < value["bytes read"]
    (row,) = results.find(what="load")
    assert len(row.details["tokens"]) == 8


def test_one_rank(modegpt, tmp_path, monkeypatch):
    """In this process: what torchrun adds is tested above."""
    monkeypatch.setattr(stream, "launch", lambda job, *_: stream.work(job | {"started": str(tmp_path / "started")}))
    file = tmp_path / "stream.json"
    command = ["bench", "stream", "--shape", "tiny-llama", "--out", file, "--work", tmp_path, *SIZES]
    assert modegpt(*command).code == 0
    results = load(file)
    assert {row.variant for row in results.rows} == {"streamed, 1 rank"}
    assert {row.what for row in results.rows} >= {"compression", "peak host memory", "bytes written", "load"}


@pytest.mark.slow
def test_a_rank_that_fails_says_why(tmp_path):
    with pytest.raises(ModegptError, match=r"1 ranks failed: .*no-such-folder"):
        stream.launch({"load": str(tmp_path / "no-such-folder"), "device": "cpu"}, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape", "gpt"], "unknown shape 'gpt'"),
        (["--layers", 3], "tiny-llama has 2 layers, got 3"),
        (["--kill-after", 2], "--kill-after 2 is not before the end of the model"),
        (["--device", "cuda"], "no device 'cuda'"),
        (["--ratio", 1], "ratio"),
    ],
    ids=str,
)
def test_a_bad_option_is_one_line(modegpt, tmp_path, options, words):
    command = ["bench", "stream", "--shape", "tiny-llama", "--out", tmp_path / "stream.json", *SIZES]
    ended = modegpt(*command, "--work", tmp_path, *options)
    assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
