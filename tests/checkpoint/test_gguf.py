"""GGUF files against llama.cpp itself, where the optional xllamacpp is installed, and what is refused."""

import json
from importlib.util import find_spec

import gguf
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modegpt import compress
from modegpt.checkpoint.gguf_file import LLAMA3, QWEN2, vocabulary, write_gguf
from modegpt.errors import ModegptError
from modegpt.llama_cpp import LlamaCpp
from modegpt.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")
needs_llama_cpp = pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="llama.cpp is not here: pip install 'modegpt[llama-cpp]'"
)
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS = {
    "one width": {},
    "tied": {"tie_word_embeddings": True},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "biases": {"attention_bias": True, "mlp_bias": True},
}
TEXT = "Hello, it's 2024: don't   split\n\n\tthis as ÄÖ漢字 would 12345 🙂 be. <s>x</s> END"


@pytest.fixture
def dense(tiny_llama):
    """A tiny dense Llama whose biases, if any, show in the logits."""

    def build(**changes):
        model = tiny_llama(**{"vocab_size": 320, "num_hidden_layers": 2} | changes)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        return model

    return build


@pytest.fixture
def small(dense, tokens):
    """A compression for a destination."""

    def build(allocation="equal", multiple_of=4, **changes):
        options = {"modules": ("mlp",), "allocation": allocation, "multiple_of": multiple_of, "epsilon": 0.05}
        return compress(dense(**changes), tokens, ratio=0.25, **options)[0]

    return build


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of 320 words of whole characters, as llama.cpp gives no probability of half a one."""
    words = ["<pad>", "<s>", "Ċ", "a", "b", "ab", *(f"w{index}" for index in range(314))]
    # llama.cpp wants a line feed and a merge
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # nor any of the end of text, which it takes to be token 11 if the file does not say
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>", pad_token="<pad>")


@torch.no_grad()
def agree(model, file, prompt):
    """llama.cpp's 60 greedy tokens are our best ones too (two may be equally good), and as likely as we say."""
    found = LlamaCpp(file, threads=1).greedy(prompt, 60)
    logprobs = model(torch.tensor([[*prompt, *found.tokens]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    ours = logprobs.gather(1, torch.tensor(found.tokens)[:, None])[:, 0]
    assert len(found.tokens) == 60 and found.tokens_per_second > 0
    assert (logprobs.amax(1) - ours).max() < 1e-4
    assert found.logprobs == pytest.approx(ours.tolist(), abs=1e-4)


def fields(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@needs_llama_cpp
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_says_what_we_say(small, letters, tmp_path, variant):
    model = small(**VARIANTS[variant])
    assert write_gguf(model, letters, tmp_path / "a.gguf", "f32") == "llama"
    agree(model, tmp_path / "a.gguf", [5, 17, 90, 33, 200, 41])


@needs_llama_cpp
def test_layers_of_different_widths_are_a_deci(small, letters, tmp_path):
    model = small("global")
    assert len(set(model.config.mlp_ranks)) > 1
    assert write_gguf(model, letters, tmp_path / "a.gguf", "f32") == "deci"
    agree(model, tmp_path / "a.gguf", [5, 17, 90])
    assert fields(tmp_path / "a.gguf")["deci.feed_forward_length"] == model.config.mlp_ranks


def trained(model, steps, normalizer=None, **options):
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = steps, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    first = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, **{"special_tokens": first} | options)
    backend.train_from_iterator([TEXT, "the split of this would be this and that 12 345 don't it's"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level(*steps, **last):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    steps = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | last)])
    return trained(models.BPE(), steps, initial_alphabet=alphabet)


def by_pattern(pattern):
    from tokenizers import Regex

    return byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"), use_regex=False)


def sentence_piece():
    """Llama 2's: spaces are ▁, and what has no token falls back to bytes."""
    normal = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normal
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, special_tokens=plain)
    backend.train_from_iterator(["the split of this would be this and that don't it's"] * 3, trainer)
    parts = json.loads(backend.to_str())
    parts["model"]["byte_fallback"] = True
    parts["added_tokens"] = parts["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "gpt-2": lambda: byte_level(),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: by_pattern(LLAMA3),
    "qwen2": lambda: by_pattern(QWEN2),
    "default": sentence_piece,
}


@needs_llama_cpp
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_splits_text_as_the_tokenizer_does(dense, tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    tokenizer.add_tokens([AddedToken("END", normalized=False)])
    write_gguf(dense(vocab_size=330), tokenizer, tmp_path / "a.gguf", "f32")
    assert fields(tmp_path / "a.gguf")["tokenizer.ggml.pre"] == name
    llama_cpp = LlamaCpp(tmp_path / "a.gguf", threads=1)
    for text in (TEXT, "this", " two  spaces", "12 345 don't"):
        assert llama_cpp.tokenize(text) == tokenizer(text).input_ids, text


# --- what is refused, which needs no llama.cpp ---


def test_what_is_quantized_is_close_and_rows_that_do_not_fit_are_refused(dense, letters, tmp_path):
    model = dense(hidden_size=64, intermediate_size=96)
    write_gguf(model, letters, tmp_path / "a.gguf", "q8_0")
    (stored,) = (t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "blk.1.ffn_down.weight")
    wanted = model.model.layers[1].mlp.down_proj.weight
    found = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.01
    with pytest.raises(ModegptError, match=r"packs 32 weights .* has 80: compress with --multiple-of 32, or use f16"):
        write_gguf(dense(hidden_size=64), letters, tmp_path / "b.gguf", "q8_0")
    with pytest.raises(ModegptError, match="a row here has 48: use --type f16"):
        write_gguf(dense(), letters, tmp_path / "b.gguf", "q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


def test_shapes_that_no_architecture_holds_are_refused_with_the_way_out(dense, tiny_opt, tokens, letters, tmp_path):
    heads, _ = compress(dense(), tokens, ratio=0.25, multiple_of=2)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    method = METHODS["svd"]
    low_rank, _ = method.compress(dense(), method.measure(dense(), tokens), 0.3)
    for model, words in (
        (heads, "GGUF holds whole heads, .* compress with --for gguf"),
        (tiny_opt(), "a Llama, not a 'opt'"),
        (low_rank, "GGUF holds no 'lowrank_llama': compress with --method modegpt --for gguf"),
        (dense(rope_parameters=yarn), "rotary scaling 'yarn'"),
        (_large(dense()), "does not fit float16"),
    ):
        with pytest.raises(ModegptError, match=words):
            write_gguf(model, letters, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def _large(model):
    model.model.layers[0].mlp.up_proj.weight.data *= 1e6
    return model


def word_pieces():
    backend = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: byte_level(pre_tokenizers.Digits(individual_digits=False)),
            "its rules for splitting text .Digits, Byte",
        ),
        (word_pieces, "its model is WordPiece"),
        (lambda: by_pattern(r"\w+"), "its rules for splitting text .Split, ByteLevel"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(build, words):
    with pytest.raises(ModegptError, match=f"GGUF has no name for this tokenizer, {words}.*export --stock"):
        vocabulary(build(), 320)


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(letters):
    with pytest.raises(ModegptError, match="320 entries and the model 100"):
        vocabulary(letters, 100)


def test_the_command_writes_a_file_and_refuses_one_that_exists(modegpt, dense_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--ratio", 0.3, "--multiple-of", 4, "--calibration", text_file, "--samples", 16, "--seq-len", 64]
    assert modegpt("compress", dense_folder, "--out", "small", "--for", "gguf", *words).code == 0
    done = modegpt("export", "small", "--gguf", "small.gguf", "--json", "export.json")
    assert done.code == 0 and "architecture 'deci'" in done.out
    result = json.loads((tmp_path / "export.json").read_text())
    assert result["bytes_exported"] == (tmp_path / "small.gguf").stat().st_size
    for words, said in (
        (["small", "--gguf", "small.gguf"], "already there: name another file, or add --overwrite"),
        (["small", "--gguf", "small"], "already there: name a file"),
        (["small"], "either --stock OUT, a folder, or --gguf"),
        (["small", "--gguf", "a.gguf", "--stock", "b"], "either --stock OUT, a folder, or --gguf"),
        (["small", "--gguf", "b.gguf", "--type", "q8_0"], "a row here has 8: use --type f16"),
        (["small", "--gguf", "no/b.gguf"], "give a file in a folder that exists"),
    ):
        done = modegpt("export", *words)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1) and said in done.err
    assert modegpt("export", "small", "--gguf", "small.gguf", "--overwrite").code == 0
    assert not (tmp_path / "b.gguf").exists()


def test_compress_refuses_a_destination_before_the_work(modegpt, text_file, tmp_path):
    words = ["--for", "gguf", "--calibration", text_file, "--samples", 4, "--seq-len", 32]
    done = modegpt("compress", "opt-mini", "--ratio", 0.3, "--out", tmp_path / "small", *words)
    assert done.code == 2 and "a Llama, not a 'opt'" in done.err and not list(tmp_path.iterdir())
