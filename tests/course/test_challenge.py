"""The challenge: what is no submission is refused, what runs is walled in, sized, scored and ranked."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from modegpt.course.challenge import Protocol, challenge, check_causal, stored, table
from modegpt.errors import ModegptError
from modegpt.study.results import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "challenge"
SMALL = Protocol(model="opt-mini", windows=2, length=64, seconds=60)
TINY = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def submission(folder: Path, body: str, name: str = "ours") -> Path:
    file = folder / f"{name}.py"
    file.write_text(f"import modegpt\n\n\ndef compress(model, tokenizer, text, ratio):\n    {body}\n")
    return file


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "def compress(:", "is no Python"),
        ("a.py", "x = 1", "defines no function compress"),
        ("a.py", "#" * 70_000, "at most 65,536"),
        ("two words.py", "def compress(): 0", "no name for the leaderboard"),
        ("dense.py", "def compress(): 0", "no name for the leaderboard"),
        ("none.py", None, "cannot read"),
    ],
)
def test_what_is_no_submission_is_refused_before_any_work(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ModegptError, match=message):
        challenge(tmp_path / name, tmp_path / "board.json", SMALL)
    assert not (tmp_path / "board.json").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("open('closed/text').read()", "may not read the text"),
        ("import os; os.symlink('closed/text', 'link'); open('link')", "may not read the text"),
        ("open('../outside', 'w')", "may not write"),
        ("import os; os.rename('own', '../outside')", "may not write"),
        ("import subprocess; subprocess.run(['ls'])", "may not start programs"),
        ("import os; os.system('ls')", "may not start programs"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "may not start programs or connect"),
        ("open('own', 'a').write('x'); print(open('/etc/hosts').read()[:0], 'fine')", "fine"),
    ],
)
def test_the_wall(tmp_path, code, message):
    scratch = tmp_path / "scratch"
    (scratch / "closed").mkdir(parents=True)
    (scratch / "closed" / "text").write_text("secret")
    (scratch / "own").write_text("mine")
    before = "from pathlib import Path; from modegpt.course.submission import wall; here = Path.cwd().resolve();"
    program = f"{before} wall(here, [str(here / 'closed')])\n{code}"
    said = subprocess.run([sys.executable, "-c", program], cwd=scratch, capture_output=True, text=True)
    assert message in (said.stdout + said.stderr).splitlines()[-1]
    assert "secret" not in said.stdout and not (tmp_path / "outside").exists()


@torch.no_grad()
def test_a_model_that_sees_what_it_should_predict_is_refused():
    torch.manual_seed(0)
    window = torch.arange(12)
    check_causal(LlamaForCausalLM(LlamaConfig(**TINY)).eval(), window)
    check_causal(BertLMHeadModel(BertConfig(**TINY, is_decoder=True)).eval(), window)
    with pytest.raises(ModegptError, match="sees the tokens"):
        check_causal(BertLMHeadModel(BertConfig(**TINY)).eval(), window)


def test_all_numbers_that_a_model_brings_are_counted_and_tied_ones_once():
    tied, loose = (LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=tie)) for tie in (True, False))
    assert stored(loose) - stored(tied) == 50 * 16
    assert stored(tied) == sum(parameter.numel() for parameter in tied.parameters())
    tied.register_buffer("hidden", torch.zeros(1000))
    assert stored(tied) == 1000 + sum(parameter.numel() for parameter in tied.parameters())


def test_the_committed_leaderboard_is_of_the_examples_as_they_are():
    board = load(EXAMPLES / "leaderboard.json")
    assert vars(Protocol()).items() <= board.settings.items()
    assert table(board) == (EXAMPLES / "leaderboard.md").read_text(encoding="utf-8")
    for row in board.rows:
        if row.method != "dense":
            source = (EXAMPLES / f"{row.method}.py").read_bytes()
            assert hashlib.sha256(source).hexdigest() == row.details["file_sha256"], "measure it again"


@pytest.mark.slow
def test_a_submission_is_scored_and_ranked_and_others_are_told_why_not(tmp_path, capsys):
    board = tmp_path / "board.json"
    small = "modegpt.compress(model, text, tokenizer=tokenizer, ratio={}, samples=4, seq_len=64)[0]"
    challenge(submission(tmp_path, f"return {small.format('ratio')}", "good"), board, SMALL)
    rows = {row.method: row for row in load(board).rows}
    assert set(rows) == {"dense", "good"} and rows["good"].value > 1 and rows["good"].ratio == 0.3
    assert rows["good"].details["parameters"] < rows["dense"].details["parameters"] == 18_129_408
    assert "| 1 | good |" in board.with_suffix(".md").read_text()
    peek = "try: modegpt.load_text('wiki-passages', 'evaluation')\n    except RuntimeError: return model"
    with pytest.raises(ModegptError, match="parameters, at most"):  # the dense model, once it may not read
        challenge(submission(tmp_path, peek), board, SMALL)
    with pytest.raises(ModegptError, match="more than 1 s"):
        brief = Protocol(**vars(SMALL) | {"seconds": 1})
        challenge(submission(tmp_path, "while True: pass"), tmp_path / "brief.json", brief)
    with pytest.raises(ModegptError, match="another protocol"):
        challenge(submission(tmp_path, "return 1"), board, Protocol(**vars(SMALL) | {"windows": 3}))
    assert {row.method for row in load(board).rows} == {"dense", "good"}
