import json

import pytest
import yaml
from huggingface_hub import ModelCard

from modegpt.checkpoint.card import EMBEDDED_SOURCES, model_card, source_of
from modegpt.checkpoint.folder import REPORT_FILE, add_evaluation
from modegpt.sources import EMBEDDED_MODELS

REPORT = {
    "model": "smollm2-135m",
    "source": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "licence": "apache-2.0",
    "method": "modegpt",
    "block_ratio": 0.3,
    "model_ratio": 0.236,
    "parameters_before": 134_500_000,
    "parameters_after": 102_700_000,
    "tokens": 32768,
    "calibration": "wiki-passages",
    "seed": 0,
    "dtype": "bfloat16",
    "command": "modegpt compress smollm2-135m --ratio 0.3 --out small",
    "versions": {"torch": "2.13.0"},
}
ROW = {"text": "wiki-passages", "perplexity": 44.479, "standard_error": 1.5, "windows": 24, "seq_len": 2048}
ROW |= {"dtype": "bfloat16", "device": "cpu: a CPU"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / REPORT_FILE).write_text(json.dumps(REPORT))
    (tmp_path / "README.md").write_text(model_card(REPORT, stock=False))
    return tmp_path


def test_the_card_is_one_that_the_hub_reads():
    card = ModelCard(model_card(REPORT, stock=False))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for said in ("modegpt", "30.0%", "23.6%", "32,768 tokens of wiki-passages", "torch 2.13.0", REPORT["command"]):
        assert said in card.text
    assert "trust_remote_code=True" in card.text
    assert "Not evaluated yet" in card.text


def test_a_stock_export_needs_no_remote_code():
    export = {"saved": 0.25, "padding": 0.1, "command": "modegpt export small --stock plain"}
    card = model_card(REPORT | {"export": export}, stock=True)
    assert "trust_remote_code" not in card
    assert "25.0%" in card and "10.0%" in card and export["command"] in card


def test_a_method_that_looks_at_no_text_does_not_claim_one():
    assert "No calibration text was looked at" in model_card(REPORT | {"method": "svd", "tokens": 0}, stock=False)


ODD = [
    "mit\nbase_model: evil/model",
    "mit: {a: b}",
    "[apache-2.0",
    "'quoted\" text",
    "---\nlicense: none",
    "# a comment",
    "yes",
    "1.0",
    "© somebody",
]


@pytest.mark.parametrize("words", ODD)
def test_whatever_the_source_says_the_card_is_one_that_the_hub_reads(words):
    for source in (REPORT["source"], "some/where: else\n---"):
        card = ModelCard(model_card(REPORT | {"licence": words, "source": source}, stock=False))
        front = yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))
        assert front == card.data.to_dict()
        assert front.get("base_model") == (source if source == REPORT["source"] else None)  # the hub wants an id
        named = {"license": "yes"} if words == "yes" else {"license": "other", "license_name": words}
        assert named.items() <= front.items()
        assert front["datasets"] == ["google/boolq"]
        assert "\n## Loading\n" in card.text and "\n---" not in card.text


def test_the_hub_finds_what_was_measured(folder):
    assert add_evaluation(folder, ROW)
    assert add_evaluation(folder, ROW | {"text": "wikitext2", "perplexity": 12.5, "seq_len": 512})
    assert add_evaluation(folder, ROW | {"text": "ruin", "perplexity": float("inf")})
    card = ModelCard.load(folder / "README.md")
    found = {(row.dataset_type, row.metric_type, row.metric_value) for row in card.data.eval_results}
    assert found == {("google/boolq", "perplexity", 44.479), ("Salesforce/wikitext", "perplexity", 12.5)}
    (index,) = yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))["model-index"]
    assert index["name"] == "SmolLM2-135M-Instruct" and len(index["results"]) == 2
    assert {"task", "dataset", "metrics"} <= index["results"][0].keys()
    assert card.data.license == "apache-2.0" and card.data.base_model == REPORT["source"]


def test_what_the_owner_adds_to_the_metadata_stays(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: mit\nlanguage: en", 1))
    assert add_evaluation(folder, ROW)
    data = ModelCard.load(card).data
    assert (data.license, data.language, len(data.eval_results)) == ("mit", "en", 1)


def test_a_mixed_calibration_names_each_data_set():
    card = ModelCard(model_card(REPORT | {"calibration": "wikitext2:validation+alpaca+notes.txt"}, stock=False))
    assert card.data.datasets == ["Salesforce/wikitext", "tatsu-lab/alpaca"]


def test_a_bar_in_the_name_of_a_text_makes_no_column(folder):
    assert add_evaluation(folder, ROW | {"text": "a|b.txt"})
    assert "| a\\|b.txt | 44.479 ± 1.500 | 24 |" in (folder / "README.md").read_text()


def test_a_source_without_licence_is_not_given_one():
    card = ModelCard(model_card(REPORT | {"licence": None}, stock=False))
    assert card.data.license is None
    assert "see its model card" in card.text


def test_evaluations_are_added_and_replaced(folder):
    assert add_evaluation(folder, ROW | {"perplexity": 99.0})
    assert add_evaluation(folder, ROW)
    assert add_evaluation(folder, ROW | {"text": "wikitext2", "perplexity": 12.5, "standard_error": None})
    card = (folder / "README.md").read_text()
    assert "| wiki-passages | 44.479 ± 1.500 | 24 | 2048 | bfloat16 | cpu: a CPU |" in card
    assert "| wikitext2 | 12.500 |" in card
    assert "99.0" not in card and "Not evaluated yet" not in card
    assert len(json.loads((folder / REPORT_FILE).read_text())["evaluations"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", REPORT_FILE]


def test_what_the_user_wrote_into_the_card_stays(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Loading", "My own notes.\n\n## Loading") + "More notes.\n")
    assert add_evaluation(folder, ROW)
    assert "My own notes." in card.read_text() and card.read_text().endswith("More notes.\n")
    assert "44.479" in card.read_text()
    card.write_text("I wrote all of this myself.\n")
    assert add_evaluation(folder, ROW)
    assert card.read_text() == "I wrote all of this myself.\n"


@pytest.mark.parametrize("text", [None, "not json", "[]"], ids=str)
def test_a_folder_that_compress_did_not_write_stays_as_it_is(tmp_path, text):
    if text is not None:
        (tmp_path / REPORT_FILE).write_text(text)
    assert not add_evaluation(tmp_path, ROW)
    assert not (tmp_path / "README.md").exists()
    (tmp_path / "README.md").write_text("Mine.")
    assert not add_evaluation(tmp_path, ROW)
    assert (tmp_path / "README.md").read_text() == "Mine."


@pytest.mark.parametrize("model", EMBEDDED_MODELS)
def test_embedded_models_have_a_licence(model):
    assert model in EMBEDDED_SOURCES
    assert source_of(model)["licence"]


def test_the_licence_of_a_folder_is_what_its_card_says(tmp_path):
    assert source_of(str(tmp_path)) == {"source": tmp_path.name, "licence": None}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert source_of(str(tmp_path)) == {"source": tmp_path.name, "licence": "mit"}
    (tmp_path / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert source_of(str(tmp_path))["licence"] is None


def test_the_hub_is_not_waited_for():
    assert source_of("nobody/nothing") == {"source": "nobody/nothing", "licence": None}
