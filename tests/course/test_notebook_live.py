"""Notebook 13 where it measures, on a tiny shape, with a reader's own model as the hub's cache holds it."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import modegpt.modeling  # noqa: F401
from modegpt.course import commands as notebooks
from modegpt.course import files
from modegpt.study.results import load

pytest.importorskip("papermill", reason="the environment of `make setup` has it")
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def hub_cache(tmp_path, dense_folder, monkeypatch):
    """The cache of a hub without network, which holds org/tiny."""
    repo = tmp_path / "home/hub/models--org--tiny"
    shutil.copytree(dense_folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("hub_cache")
def test_it_measures_and_compresses_the_readers_own_model(tmp_path, text_file):
    given = {"live": "true", "shape": "tiny-llama", "samples": 8, "length": 64, "batch_size": 4, "prompts": 2}
    given |= {"prompt": 32, "context": 16, "save_as": tmp_path / "live.json", "own_model": "org/tiny"}
    given |= {"own_text": text_file, "own_windows": 4, "own_folder": tmp_path / "small"}
    assignments = [f"{name}={value}" for name, value in given.items()]
    notebooks.run(["13"], folder=FOLDER, target=tmp_path / "out", parameter=assignments)

    found = load(tmp_path / "live.json")
    assert found.command.startswith("modegpt course run 13 -p live=True -p shape=tiny-llama")
    assert found.settings["samples"] == 8 and all(row.value is not None for row in found.rows)
    assert {"compression", "speed-up", "prefill", "decode"} <= {row.what for row in found.rows}
    assert [row.ratio for row in found.find(what="prefill")] == [0.0, 0.3, 0.5]

    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert small.config.model_type == "modegpt_llama"
    (output,) = (tmp_path / "out").glob("13_*.ipynb")
    words = {cell.id: str(cell.get("outputs")) for cell in files.read(output).cells}
    assert "dense: " in words["own-load"] and "30% removed: " in words["own-compress"]
    assert "tiny-llama, live" in words["literal"] and "tiny-llama" in words["fifteen"]
