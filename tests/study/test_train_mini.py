import itertools
import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from modegpt.errors import ModegptError
from modegpt.families import family_of, rewritten
from modegpt.sources import resolve_model
from modegpt.study import train_mini as kit

pytestmark = pytest.mark.usefixtures("one_thread")
PROSE = (
    "The harbour was quiet that morning, and the boats lay still. Anna counted them twice. Nobody had gone out to sea."
)


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def test_requests_are_many_and_repeatable():
    some = list(itertools.islice(kit.prompts(1), 300))
    assert len(set(some)) > 290
    assert some == list(itertools.islice(kit.prompts(1), 300))
    assert some != list(itertools.islice(kit.prompts(2), 300))


@pytest.mark.parametrize(
    "text",
    [
        "Too short.",
        PROSE + " ```python\nprint()```",
        PROSE + " [Your Name]",
        PROSE + " As an AI assistant I cannot go to sea.",
        "so very " * 60 + ".",
        "Привет, как дела сегодня? " * 8,
        PROSE + "\x00",
    ],
)
def test_what_is_no_prose_is_left_out(text):
    assert kit.readable(PROSE)
    assert not kit.readable(text)


def test_rows_answer_one_request_after_the_other(chat_tokenizer, monkeypatch):
    """A model that always writes one token, and ends every third answer: requests are never taken for answers."""
    end, word = (chat_tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "a"))

    class Script(LlamaForCausalLM):
        calls = 0

        def forward(self, tokens, **kwargs):
            Script.calls += 1
            logits = torch.full((len(tokens), 1, 400), -1e9)
            logits[..., end if Script.calls % 40 == 0 else word] = 0
            return type("Output", (), {"logits": logits})

    model = Script(LlamaConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=400))
    texts = kit.write_texts(model, chat_tokenizer, itertools.repeat("what?"), rows=2, length=300, seed=0)
    assert texts and all(set(text) <= {"a", "."} for text in texts)
    assert any(len(text) > 10 for text in texts)


def test_the_tokenizer_puts_the_end_token_in_front_and_loses_nothing(text_file):
    documents = text_file.read_text().split(". ")
    tokenizer = kit.train_tokenizer(documents, 400)
    ids = tokenizer(PROSE)["input_ids"]
    assert ids[0] == kit.EOS and kit.EOS not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == PROSE
    assert tokenizer.pad_token_id == kit.PAD
    windows = kit.pack(documents, tokenizer)
    assert windows.shape[1] == kit.CONTEXT and int((windows == kit.EOS).sum()) > len(windows)


def test_documents_are_kept_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / "0000.json").write_text(json.dumps({"seconds": 2.5, "texts": ["x" * 60]}))
    written = []
    monkeypatch.setattr(kit, "load_model", lambda *_, **__: (None, None))
    monkeypatch.setattr(kit, "write_texts", lambda *_: written.append(1) or [PROSE, "no"])
    documents, seconds = kit.corpus(tmp_path, 100, rows=1, length=64, seed=0, device="cpu")
    assert documents == ["x" * 60, PROSE] and len(written) == 1
    assert 2.5 <= seconds < 3
    assert kit.corpus(tmp_path, 100, rows=1, length=64, seed=0, device="cpu")[0] == documents
    assert len(written) == 1


def test_training_lowers_the_loss(monkeypatch):
    small = kit.config("opt", 400)
    small.hidden_size = small.word_embed_proj_dim = 32
    small.ffn_dim, small.num_hidden_layers, small.num_attention_heads = 64, 1, 2
    torch.manual_seed(0)
    windows = torch.arange(64).repeat(8, 1) + 4  # a text that can be learnt
    model = OPTForCausalLM(small)
    curve = kit.train(model, windows, windows[:2], steps=30, batch=4, peak=1e-2, seed=0)
    assert curve[-1]["step"] == 30
    assert curve[-1]["held_out_loss"] < 0.7 * curve[0]["held_out_loss"]


@pytest.mark.parametrize("architecture", kit.WORDS)
def test_every_architecture_has_5_to_20_million_parameters_and_a_family(architecture):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kit.config(architecture, 8192))
    assert 5e6 < model.num_parameters() < 2e7
    assert family_of(rewritten(model)) is not None


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "0000.json").write_text(json.dumps({"seconds": 1.0, "texts": [PROSE]}))
    with pytest.raises(ModegptError, match="do not fill windows"):
        sizes = {"characters": 50, "steps": 1, "batch": 1, "peak": 1e-3, "vocabulary": 400, "rows": 1, "length": 8}
        kit.train_mini(tmp_path, kit.Recipe(architecture="opt", **sizes, seed=0), "cpu")


def test_the_card_says_what_the_training_file_says():
    folder = kit.Path(resolve_model("opt-mini"))
    facts = json.loads((folder / kit.TRAINING_FILE).read_text())
    assert (folder / "README.md").read_text() == kit.card(facts)
    assert facts["curve"][-1]["held_out_loss"] < 2
    assert facts["curve"][-1]["held_out_loss"] < facts["curve"][10]["held_out_loss"]


def test_the_model_that_ships_is_the_one_described():
    folder = kit.Path(resolve_model("opt-mini"))
    facts = json.loads((folder / kit.TRAINING_FILE).read_text())
    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    assert type(model) is OPTForCausalLM and model.config.do_layer_norm_before
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert min(float(p.detach().abs().max()) for n, p in model.named_parameters() if n.endswith("bias")) > 0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 40e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time, a fisherman named", return_tensors="pt", return_token_type_ids=False)
    prose = tokenizer(PROSE, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        loss = model(**prose, labels=prose["input_ids"]).loss
    assert loss < 6  # a guess among 8,192 tokens would be 9
    written = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True).startswith("Once upon a time, a fisherman named Jack")
