"""Two processes on one machine, over gloo: the same model as one process makes, and no waiting for the dead."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modegpt import parallel
from modegpt.errors import ModegptError

SECONDS = 240  # on a busy machine; a few of them are spent on importing torch twice


def torchrun(*arguments: object, gpus: str = "") -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpus, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a session of its own, so that all its processes can be ended
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def finish(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    try:
        return [(p.returncode, *found) for p in processes for found in [p.communicate(timeout=SECONDS)]]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def compress(dense_folder, text_file, tmp_path_factory):
    """Arguments of one and the same compression, into a new folder."""

    def arguments(*more: object) -> tuple[list[object], Path]:
        target = tmp_path_factory.mktemp("ranks") / "small"
        options = ["--samples", 7, "--seq-len", 64, "--calibration", text_file, "--batch-size", 2, "--dtype", "float32"]
        command = ["-m", "modegpt", "compress", dense_folder, "--ratio", 0.3, "--out", target, "--device", "cpu"]
        return [*command, *options, *more], target

    return arguments


@pytest.fixture(scope="module")
def alone(compress, modegpt) -> dict[str, torch.Tensor]:
    command, target = compress()
    ended = modegpt(*command[2:])
    assert ended.code == 0, ended.err
    return weights(target)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--stream",), ("--allocation", "uniform", "--stream")], ids=" ".join)
def test_two_ranks_make_the_model_of_one(compress, alone, modegpt, more):
    command, target = compress(*more)
    [(code, out, err)] = finish(torchrun("--standalone", "--nproc-per-node=2", *command))
    assert code == 0, err
    assert out.count("of the block parameters gone") == 1  # one rank speaks
    if "uniform" in more:
        command, other = compress(*more)
        modegpt(*command[2:])
        alone = weights(other)
    products_agree(weights(target), alone)


def products_agree(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The factors of value-output are unique up to a sign; all else, and their product, is compared."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if not any(part in name for part in ("down_proj", "v_proj", "o_proj")):
            assert torch.equal(found[name], tensor), name
        if "down_proj" in name:
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
        if "v_proj" in name:
            output = name.replace("v_proj", "o_proj")
            torch.testing.assert_close(
                product(found, name, output), product(wanted, name, output), rtol=1e-3, atol=1e-4
            )


def product(weights: dict[str, torch.Tensor], value: str, output: str) -> torch.Tensor:
    """W_O W_V of every query head of the tiny model, which has two for each of two key/value heads."""
    width = weights[output].shape[0]
    heads = weights[value].view(2, -1, width)
    return torch.einsum("whgr,hrx->hgwx", weights[output].view(width, 2, 2, -1), heads)


@pytest.mark.slow
def test_two_hosts_meet_at_a_rendezvous(compress, alone):
    """As on two machines: two launches with one process each, and an address to meet at; in memory, not streamed."""
    command, target = compress()
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    launches = [torchrun(*meet, "--local-addr=127.0.0.1", *command) for _ in range(2)]
    for code, _, err in finish(*launches):
        assert code == 0, err
    products_agree(weights(target), alone)


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each of two ranks")
DYING = """
import os, signal, sys
import torch, typer
from modegpt import console, parallel
from modegpt.errors import ModegptError
def work():
    with parallel.ranks(torch.device(sys.argv[1])) as device:
        parallel.add_up(torch.ones(3, device=device))
        if parallel.rank() == 1:
            if sys.argv[2] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ModegptError("layer 5: its activations hold NaN or inf")
        print(parallel.add_up(torch.ones(3, device=device)))
program = typer.Typer()
program.command()(work)
console.run(program, [])
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=TWO_GPUS)])
@pytest.mark.parametrize("how", ["refuses", "killed"])
def test_a_rank_that_dies_stops_the_others_within_a_minute(tmp_path, device, how):
    """While the other waits for a sum, over gloo and over NCCL."""
    script = tmp_path / "dies.py"
    script.write_text(DYING)
    start = time.monotonic()
    gpus = "0,1" if device == "cuda" else ""
    [(code, _, err)] = finish(torchrun("--standalone", "--nproc-per-node=2", script, device, how, gpus=gpus))
    assert code != 0
    assert how == "killed" or "modegpt: layer 5: its activations hold NaN or inf" in err
    assert time.monotonic() - start < 60


def test_more_ranks_than_samples_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 4)
    with pytest.raises(ModegptError, match="3 calibration samples cannot be shared by 4 ranks"):
        parallel.own_share(torch.zeros(3, 5))


def test_layers_take_turns_over_the_ranks(monkeypatch):
    """Each rank gets its own layers, and none before all have one: then they decompose at the same time."""
    monkeypatch.setattr(parallel, "size", lambda: 3)
    for rank, own in ((0, [0, 3, 6]), (1, [1, 4, 7]), (2, [2, 5])):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        seen = []

        def layers(seen=seen):
            for index in range(8):
                seen.append(index)
                yield index, f"statistics of {index}"

        turns = [(index, item, len(seen)) for index, item in parallel.in_turns(layers())]
        assert [turn[:2] for turn in turns] == [(index, f"statistics of {index}") for index in own]
        assert [turn[2] for turn in turns] == [3, 6, 8][: len(own)]


def test_one_process_is_rank_0_of_1():
    assert (parallel.rank(), parallel.size(), parallel.owner(5), parallel.mine(5)) == (0, 1, 0, True)
    tensor = torch.ones(2)
    assert parallel.add_up(tensor) is tensor and parallel.gather("x") == ["x"]
    with parallel.ranks(torch.device("cpu")) as device:
        assert device == torch.device("cpu")


@pytest.mark.slow
def test_ranks_that_were_not_started_alike_are_refused(compress, tmp_path):
    """Two launches with unequal seeds: their sums would be of two kinds."""
    command, target = compress()
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    launches = [torchrun(*meet, "--local-addr=127.0.0.1", *command, "--seed", seed) for seed in (0, 1)]
    for code, _, err in finish(*launches):
        assert code != 0
        assert "modegpt: the ranks were not started alike: sha256 of the tokens is " in err
    assert not target.exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK is first"),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_one_line(monkeypatch, environment, words):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ModegptError, match=f"{words}: start several processes with torchrun"),
        parallel.ranks(torch.device("cpu")),
    ):
        pass
