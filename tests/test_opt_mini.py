"""What the command line does for smollm2-135m it does for opt-mini, the OPT that ships with the kit."""

import json

import pytest
from transformers import AutoModelForCausalLM, OPTForCausalLM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SHORT = ["--samples", "8", "--seq-len", "256"]
WINDOWS = ["--windows", "4", "--seq-len", "256", "--dtype", "float32"]


@pytest.fixture(scope="module")
def small(modegpt, tmp_path_factory):
    """opt-mini at 10, 30 and 50 %, in the folders small-0.1 and so on."""
    home = tmp_path_factory.mktemp("opt-mini")
    for ratio in (0.1, 0.3, 0.5):
        folder = home / f"small-{ratio}"
        done = modegpt("compress", "opt-mini", "--ratio", ratio, "--out", folder, "--dtype", "float32", *SHORT)
        assert done.code == 0, done.err
    return home


def perplexity(modegpt, model, file):
    done = modegpt("evaluate", model, *WINDOWS, "--json", file)
    assert done.code == 0, done.err
    return json.loads(file.read_text())["perplexity"]


def test_compression_costs_something_visible_and_more_costs_more(modegpt, small, tmp_path):
    dense = perplexity(modegpt, "opt-mini", tmp_path / "dense.json")
    costs = [perplexity(modegpt, small / f"small-{ratio}", tmp_path / "small.json") for ratio in (0.1, 0.3, 0.5)]
    assert costs[0] < costs[1] < costs[2]
    assert costs[1] > 1.04 * dense and costs[2] > 1.2 * dense  # 1.20 and 1.98 with the default calibration
    assert f"{costs[2]:.3f}" in (small / "small-0.5" / "README.md").read_text()


def test_it_writes_and_its_export_is_a_plain_opt_that_writes_the_same(modegpt, small, tmp_path):
    command = ["Once upon a time, a fisherman", "--max-new-tokens", "12", "--dtype", "float32"]
    written = modegpt("generate", small / "small-0.3", *command)
    assert written.code == 0 and written.out.startswith("Once upon a time, a fisherman")
    assert modegpt("export", small / "small-0.3", "--stock", tmp_path / "plain").code == 0
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")) is OPTForCausalLM
    assert modegpt("generate", tmp_path / "plain", *command).out == written.out


def test_the_card_names_the_licence_and_a_file_of_the_same_name_is_not_touched(modegpt, small, tmp_path, monkeypatch):
    folder = tmp_path / "opt-mini"
    (small / "small-0.1").rename(folder)
    card = folder / "README.md"
    before = card.read_text()
    assert "license: cc-by-sa-3.0" in before and "CC BY-SA 3.0, cc" not in before
    monkeypatch.chdir(tmp_path)
    assert modegpt("evaluate", "opt-mini", *WINDOWS).code == 0  # the embedded model, not the folder
    assert card.read_text() == before
    folder.rename(small / "small-0.1")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "opt-mini", "--seq-len", "4096", "--windows", "1"],
        ["compress", "opt-mini", "--ratio", "0.3", "--seq-len", "4096", "--samples", "4", "--out", "new"],
        ["compare", "opt-mini", "--seq-len", "4096", "--windows", "1", "--out", "new.json"],
        ["generate", "opt-mini", "a word", "--max-new-tokens", "2047"],
    ],
    ids=lambda command: command[0],
)
def test_more_positions_than_it_has_learnt_are_refused(modegpt, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    done = modegpt(*command)
    assert done.code != 0
    assert "this model has learnt 2048 positions" in done.err and len(done.err.splitlines()) == 1
