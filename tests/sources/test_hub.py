"""Models and data sets of the hub: from a hub on the loopback, from the cache, and with no hub at all."""

import gzip
import json
import shutil
import socket
from pathlib import Path

import pytest
from datasets import Dataset

from modegpt.sources import load_model
from modegpt.sources.texts import C4_DOCUMENTS

pytestmark = pytest.mark.slow

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"

WIKITEXT = {
    "train": ["", " = A train = \n", "", " It runs . \n"],
    "validation": [" valid \n"],
    "test": ["", " = Robert = \n", "", " He acts . \n", " He sings . \n"],
}
ALPACA = [{"instruction": f"do {i}", "input": "x" * (i % 2), "output": f"done {i}", "text": ""} for i in range(10)]

LOAD = """
from modegpt.sources import load_model, load_text
def tiny(name):
    model, tokenizer = load_model(name, dtype="float32")
    total = sum(p.sum().item() for p in model.parameters())
    return [type(model).__name__, total, tokenizer("ab")["input_ids"]]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """HF_HOME, shared by the runs with the hub and, later, without it."""
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def online(hub, home: str, tiny_folder: Path, run_python) -> dict:
    models, data = hub.root / "models", hub.root / "datasets"
    shutil.copytree(tiny_folder, models / "org/tiny")
    shutil.copytree(tiny_folder, models / "org/gated")
    (models / "org/gated/GATED").touch()
    (models / "org/empty").mkdir()
    (models / "org/empty/README.md").write_text("nothing yet")
    shutil.copytree(tiny_folder, models / "org/bare", ignore=shutil.ignore_patterns("tokenizer*"))
    write_wikitext(data / "Salesforce/wikitext")
    write_alpaca(data / "tatsu-lab/alpaca")
    write_c4(data / "allenai/c4")
    code = LOAD + (
        'for name in ("org/tiny", "org/gated", "org/none", "org/empty", "org/bare", "nobodys-model"):\n'
        "    attempt(name, lambda: tiny(name))\n"
        'for name in ("wikitext2", "wikitext2:validation", "alpaca", "c4"):\n'
        '    for part in ("calibration", "evaluation"):\n'
        "        attempt(f'{name} {part}', lambda: load_text(name, part))\n"
    )
    return run_python(code, HF_ENDPOINT=hub.url, HF_HOME=home)


def write_wikitext(folder: Path) -> None:
    files = folder / "wikitext-2-raw-v1"
    files.mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: wikitext-2-raw-v1", "  data_files:"]
    for split, rows in WIKITEXT.items():
        Dataset.from_dict({"text": rows}).to_parquet(files / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: wikitext-2-raw-v1/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_alpaca(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(ALPACA).to_parquet(folder / "data/train-00000-of-00001.parquet")
    (folder / "README.md").write_text("Alpaca")


def write_c4(folder: Path) -> None:
    (folder / "en").mkdir(parents=True)
    for shard in ("c4-train.00000-of-01024", "c4-validation.00000-of-00008"):
        with gzip.open(folder / f"en/{shard}.json.gz", "wt") as file:
            for i in range(2005):
                file.write(json.dumps({"text": f"{shard[:7]} {i}", "url": "u"}) + "\n")
    (folder / "README.md").write_text("C4")


@pytest.fixture(scope="module")
def no_hub(online: dict, home: str, run_python) -> dict:
    """Nobody at the hub's address; the cache holds what `online` fetched."""
    code = LOAD + (
        'attempt("cached model", lambda: tiny("org/tiny"))\n'
        'attempt("cached text", lambda: load_text("wikitext2", "evaluation"))\n'
        'attempt("model", lambda: tiny("org/other"))\n'
        'for part in ("calibration", "evaluation"):\n'
        '    attempt(part, lambda: load_text("c4", part))\n'
    )
    return run_python(code, HF_ENDPOINT="http://127.0.0.1:1", HF_HOME=home)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, run_python) -> dict:
    """The network is declared off; the cache holds one model, written by hand in the hub's layout."""
    home = tmp_path_factory.mktemp("offline_home")
    repo = home / "hub/models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    for file in tiny_folder.iterdir():
        shutil.copy(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(repo / "blobs" / file.name)
    code = LOAD + (
        'attempt("cached model", lambda: tiny("org/name"))\n'
        'attempt("model", lambda: tiny("org/other"))\n'
        'attempt("calibration", lambda: load_text("wikitext2", "calibration"))\n'
        'attempt("evaluation", lambda: load_text("wikitext2", "evaluation"))\n'
    )
    return run_python(code, HF_HUB_OFFLINE="1", HF_HOME=str(home))


def test_model_from_the_hub_is_the_model_on_the_disk(online: dict, tiny_folder: Path):
    model, tokenizer = load_model(str(tiny_folder), dtype="float32")
    name, total, ids = online["org/tiny"]["result"]
    assert name == "LlamaForCausalLM"
    assert total == sum(p.sum().item() for p in model.parameters())
    assert ids == tokenizer("ab")["input_ids"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/gated", "'org/gated' is gated: accept its licence"),
        ("org/none", "the hub has no 'org/none': check the name"),
        ("org/empty", "'org/empty' is no causal language model"),
        ("org/bare", "the tokenizer of 'org/bare' is missing"),
        ("nobodys-model", "embedded models: smollm2-135m"),
    ],
)
def test_what_the_hub_refuses_is_one_line(online: dict, model: str, words: str):
    assert online[model]["error"] == "ModegptError"
    assert words in online[model]["text"]
    assert "\n" not in online[model]["text"]


@pytest.mark.parametrize(
    ("label", "split"),
    [
        ("wikitext2 calibration", "train"),
        ("wikitext2 evaluation", "test"),
        ("wikitext2:validation calibration", "validation"),
        ("wikitext2:validation evaluation", "validation"),
    ],
)
def test_wikitext2_from_the_hub(online: dict, label: str, split: str):
    assert online[label]["result"] == "\n\n".join(WIKITEXT[split])


def test_alpaca_from_the_hub_is_split_by_item(online: dict):
    first, second = online["alpaca calibration"]["result"], online["alpaca evaluation"]["result"]
    assert [first.count(f"### Response:\ndone {i}") for i in range(10)] == [1] * 8 + [0] * 2
    assert [second.count(f"### Response:\ndone {i}") for i in range(10)] == [0] * 8 + [1] * 2


def test_c4_from_the_hub_takes_so_many_documents_of_two_shards(online: dict):
    train, validation = (online[f"c4 {part}"]["result"].split("\n\n") for part in ("calibration", "evaluation"))
    assert (train[0], train[-1]) == ("c4-trai 0", f"c4-trai {C4_DOCUMENTS - 1}")
    assert (validation[0], validation[-1]) == ("c4-vali 0", f"c4-vali {C4_DOCUMENTS - 1}")


def test_without_a_hub_the_cache_serves(online: dict, no_hub: dict, offline: dict):
    assert no_hub["cached model"]["result"] == online["org/tiny"]["result"]
    assert no_hub["cached text"]["result"] == online["wikitext2 evaluation"]["result"]
    assert no_hub["cached text"]["seconds"] < 10  # datasets alone retries for 23 s
    assert offline["cached model"]["result"] == online["org/tiny"]["result"]


@pytest.mark.parametrize("network", ["no_hub", "offline"])
def test_without_hub_and_cache_one_line_says_what_to_do(network: str, request: pytest.FixtureRequest):
    notes = request.getfixturevalue(network)
    assert all(notes[label]["error"] == "ModegptError" for label in ("model", "calibration", "evaluation"))
    assert all("\n" not in notes[label]["text"] for label in ("model", "calibration", "evaluation"))
    assert "no folder 'org/other' here, and it cannot be had from the Hugging Face hub" in notes["model"]["text"]
    assert "smollm2-135m" in notes["model"]["text"]
    assert "MODEGPT_DATA_DIR" in notes["calibration"]["text"]
    assert "--calibration wiki-passages" in notes["calibration"]["text"]
    assert "--text wiki-passages" in notes["evaluation"]["text"]
    assert all(notes[label]["seconds"] < 10 for label in ("model", "calibration", "evaluation"))
    assert "Retrying" not in notes["stderr"]


def test_a_hub_that_never_answers_does_not_hang(tmp_path: Path, run_python):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        code = LOAD + 'attempt("text", lambda: load_text("wikitext2", "calibration"))'
        notes = run_python(code, HF_ENDPOINT=url, HF_HOME=str(tmp_path))
    assert "MODEGPT_DATA_DIR" in notes["text"]["text"]
    assert notes["text"]["seconds"] < 20
