"""A stock model of the same logits, padded where it must be; the tests of `modegpt export` are at the end."""

import copy
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, OPTForCausalLM

from modegpt.allocate import Ranks
from modegpt.checkpoint.export import stock_model
from modegpt.checkpoint.folder import save_checkpoint
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.pipeline import compress
from modegpt.report import count_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMAS = {
    "grouped": {},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "llama3-rope": {"rope_parameters": LLAMA3_ROPE},
    "wide-heads": {"num_key_value_heads": 1, "head_dim": 24},
}
OPTS = {
    "opt": {},
    "opt-350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "opt-untied": {"tie_word_embeddings": False},
    "opt-gelu": {"activation_function": "gelu"},
}


@pytest.fixture
def build(tiny_llama, tiny_opt):
    """Builds a dense model by the name of its variant."""
    return lambda name: tiny_llama(**LLAMAS[name]) if name in LLAMAS else tiny_opt(**OPTS[name])


@pytest.fixture
def shrink(tokens, monkeypatch):
    """Compresses a copy, to ranks that differ from each other and between layers."""
    ranks = [Ranks(query_key=10, value=7, mlp=33), Ranks(12, 5, 70), Ranks(6, 12, 20)]
    monkeypatch.setattr("modegpt.pipeline.ranks_for", lambda *_: ranks)
    return lambda dense: compress(copy.deepcopy(dense), tokens, ratio=0.35)[0]


@pytest.fixture(params=[*LLAMAS, *OPTS])
def dense(request, build):
    return build(request.param)


@pytest.fixture
def small(dense, shrink):
    return shrink(dense)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def matrices(model):
    """Parameters of the block matrices, counted one by one."""
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)


def test_a_plain_model_gives_the_same_logits(small, dense, tokens):
    expected = logits(small, tokens)
    stock, _ = stock_model(small)
    assert type(stock) is type(dense)
    torch.testing.assert_close(logits(stock, tokens), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(small, tokens), expected)  # and the compressed one is as it was


def test_nothing_but_the_width_of_the_mlp_differs_from_the_dense_config(small, dense):
    stock, _ = stock_model(small)
    width = {LlamaForCausalLM: "intermediate_size", OPTForCausalLM: "ffn_dim"}[type(dense)]
    changed = {"dtype", "architectures"}  # which saving fills in
    before, after = ({k: v for k, v in m.config.to_dict().items() if k not in changed} for m in (dense, stock))
    assert after == before | {width: 70}
    assert stock.config._attn_implementation == small.config._attn_implementation


def test_no_stale_size_remains(small):
    stock, _ = stock_model(small)
    for module in stock.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert not any(parameter.is_meta for parameter in (*stock.parameters(), *stock.buffers()))


@pytest.mark.parametrize("name", LLAMAS)
def test_query_key_dims_are_where_they_were_in_the_dense_head(build, shrink, name):
    dense = build(name)
    stock, _ = stock_model(shrink(dense))
    for layer, original, rank in zip(stock.model.layers, dense.model.layers, (10, 12, 6), strict=True):
        for projection, heads in (("q_proj", 4), ("k_proj", dense.config.num_key_value_heads)):
            ours, theirs = (getattr(part.self_attn, projection).weight for part in (layer, original))
            kept = ours.any(1)
            assert torch.equal(ours[kept], theirs[kept])
            assert kept.view(heads, -1).sum(1).tolist() == [rank] * heads


def test_other_places_would_change_the_logits(build, shrink, tokens):
    """The dims kept are not the first ones, and every query still meets its key when both move by one place."""
    small = shrink(build("grouped"))
    stock, _ = stock_model(small)
    for layer in stock.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            heads = projection.weight.data.view(-1, 16, 48)
            assert not heads[:, :3].any(2).all()
            projection.weight.data = heads.roll(1, 1).reshape(-1, 48)
    assert (logits(stock, tokens) - logits(small, tokens)).abs().max() > 1e-2


def test_biases_of_dropped_dims_and_of_the_values_are_zero(build, shrink):
    stock, _ = stock_model(shrink(build("opt")))
    for layer, rank in zip(stock.model.decoder.layers, (10, 12, 6), strict=True):
        attention = layer.self_attn
        assert not attention.v_proj.bias.any()
        for projection in (attention.q_proj, attention.k_proj):
            assert projection.bias.view(3, 16).bool().sum(1).tolist() == [rank] * 3


@pytest.mark.parametrize("name", ["grouped", "tied", "opt", "opt-untied"])
def test_what_is_tied_stays_tied(build, shrink, tmp_path, name):
    dense = build(name)
    stock, _ = stock_model(shrink(dense))
    stock.save_pretrained(tmp_path)
    for model in (stock, AutoModelForCausalLM.from_pretrained(tmp_path)):
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        assert tied == dense.config.tie_word_embeddings


@pytest.mark.parametrize("name", ["grouped", "opt"])
def test_dtype_and_generation_config_stay(build, shrink, tmp_path, name):
    small = shrink(build(name)).to(torch.bfloat16)
    small.generation_config.max_new_tokens = 7
    stock_model(small)[0].save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("name", ["grouped", "opt"])
def test_greedy_text_is_the_same(build, shrink, tokens, name):
    small = shrink(build(name))
    stock, _ = stock_model(small)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(stock.generate(tokens[:2, :7], **options), small.generate(tokens[:2, :7], **options))


def test_report_counts_the_matrices(dense, small):
    stock, report = stock_model(small)
    assert (report.dense, report.compressed, report.exported) == tuple(map(matrices, (dense, small, stock)))
    zeros = sum(int((p == 0).sum()) for n, p in stock.named_parameters() if ".layers." in n and p.dim() == 2)
    assert report.padding == pytest.approx(zeros / report.exported)
    assert report.saved == pytest.approx(1 - matrices(stock) / matrices(dense))
    assert f"{report.saved:.1%}" in str(report) and f"{report.padding:.1%}" in str(report)


@pytest.mark.parametrize("name", ["grouped", "opt", "opt-350m"])
def test_mlps_alone_and_evenly_compressed_need_no_padding(build, tokens, name):
    dense = build(name)
    before = count_parameters(dense)
    small, compression = compress(dense, tokens, ratio=0.25, modules=("mlp",), allocation="uniform", multiple_of=4)
    expected = logits(small, tokens)
    stock, report = stock_model(small)
    assert report.padding == 0
    assert report.saved == compression.block_ratio == 0.25
    assert matrices(stock) == matrices(small)
    assert count_parameters(stock) < 0.9 * before
    torch.testing.assert_close(logits(stock, tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_budget_that_no_even_width_meets_needs_hardly_any_padding(build, tokens):
    """The layers of a uniform allocation differ by one unit at most, and all together meet the budget."""
    small, compression = compress(
        build("grouped"), tokens, ratio=0.2, modules=("mlp",), allocation="uniform", multiple_of=1
    )
    _, report = stock_model(small)
    widths = small.config.mlp_ranks
    assert max(widths) - min(widths) == 1
    channel, layers = 3 * 48, len(widths)
    assert report.padding == pytest.approx((max(widths) * layers - sum(widths)) * channel / report.exported)
    assert abs(compression.block_ratio - 0.2) <= 0.5 * channel / compression.block_parameters_before


def test_a_dense_model_is_refused(dense):
    with pytest.raises(ModegptError, match="not compressed"):
        stock_model(dense)


def test_an_export_can_be_compressed_again(build, shrink):
    assert family_of(stock_model(shrink(build("grouped")))[0])


# --- the command ---


@pytest.fixture(scope="module")
def folders(modegpt, dense_folder, text_file, tmp_path_factory):
    """A compressed folder, its export, and what that printed and wrote."""
    small = tmp_path_factory.mktemp("export") / "small"
    arguments = ["compress", dense_folder, "--ratio", 0.3, "--out", small, "--multiple-of", 2, "--dtype", "bfloat16"]
    done = modegpt(*arguments, "--calibration", text_file, "--samples", 16, "--seq-len", 64)
    assert done.code == 0, done.err
    stock, file = small.with_name("stock"), small.with_name("export.json")
    printed = modegpt("export", small, "--stock", stock, "--json", file)
    assert printed.code == 0, printed.err
    return SimpleNamespace(small=small, stock=stock, printed=printed, result=json.loads(file.read_text()))


def contents(folder):
    """Every file under `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_prints_and_writes_what_is_saved_and_what_is_padding(folders, dense_folder):
    result, printed = folders.result, folders.printed
    assert printed.err == ""
    small, stock, dense = map(AutoModelForCausalLM.from_pretrained, (folders.small, folders.stock, dense_folder))
    assert [result[k] for k in ("dense", "compressed", "exported")] == [matrices(m) for m in (dense, small, stock)]
    for share in ("saved", "padding"):
        assert f"{result[share]:.1%}" in printed.out
    for folder, size in ((folders.small, "bytes_compressed"), (folders.stock, "bytes_exported")):
        assert result[size] == (folder / "model.safetensors").stat().st_size
        assert f"{result[size] / 1e6:.1f} MB" in printed.out
    assert result["dtype"] == "bfloat16" and str(folders.stock) in printed.out
    assert {"seed", "device", "versions", "command"} <= set(result)


def test_export_holds_weights_tokenizer_and_report_but_no_code(folders):
    names = set(contents(folders.stock))
    assert {"config.json", "model.safetensors", "tokenizer.json", "modegpt_report.json"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin"))]
    config = json.loads((folders.stock / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "bfloat16"
    assert not [entry for entry in config if "rank" in entry or entry == "auto_map"]
    report, before = (json.loads((f / "modegpt_report.json").read_text()) for f in (folders.stock, folders.small))
    assert {key: report[key] for key in before} == before
    assert report["export"]["padding"] == folders.result["padding"]


@pytest.mark.slow
def test_python_without_modegpt_loads_the_folder(folders, tokens, tmp_path):
    torch.save(tokens, tmp_path / "tokens.pt")
    script = """
import sys, torch
sys.modules["modegpt"] = None  # importing it fails
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens, logits = sys.argv[1:]
AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.save(model(torch.load(tokens)).logits, logits)
print(type(model).__module__)
"""
    command = [sys.executable, "-I", "-c", script, folders.stock, tmp_path / "tokens.pt", tmp_path / "logits.pt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "transformers.models.llama.modeling_llama\n"
    small = AutoModelForCausalLM.from_pretrained(folders.small, dtype=torch.float32)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(small, tokens), rtol=1e-5, atol=1e-5)


def test_other_commands_take_the_export(modegpt, folders, text_file):
    evaluation = ["--text", text_file, "--windows", 4, "--seq-len", 48, "--dtype", "float32"]
    small, stock = (modegpt("evaluate", folder, *evaluation) for folder in (folders.small, folders.stock))
    assert small.out.split(":")[0] == stock.out.split(":")[0]  # the perplexity
    assert "calibrated on this text" in stock.err


@pytest.mark.parametrize("report", [None, "", "[1]", "5"])
def test_opt_without_tokenizer_or_readable_report(modegpt, build, shrink, tokens, tmp_path, report):
    small = shrink(build("opt"))
    save_checkpoint(tmp_path / "small", small, None, {})
    file = tmp_path / "small" / "modegpt_report.json"
    file.unlink() if report is None else file.write_text(report)
    assert modegpt("export", tmp_path / "small", "--stock", tmp_path / "stock").code == 0
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock) is OPTForCausalLM
    torch.testing.assert_close(logits(stock, tokens), logits(small, tokens), rtol=1e-5, atol=1e-5)


def test_overwrite_replaces_the_folder(modegpt, folders, tmp_path):
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "pytorch_model.bin").write_text("old")
    assert modegpt("export", folders.small, "--stock", tmp_path / "stock", "--overwrite").code == 0
    assert contents(tmp_path / "stock").keys() == contents(folders.stock).keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dense", "--stock", "new"], "not compressed"),
        (["small", "--stock", "small"], "already holds something"),
        (["small", "--stock", "small", "--overwrite"], "would replace the model"),
        (["small", "--stock", "missing/../small", "--overwrite"], "would replace the model"),
        (["absent", "--stock", "new"], "'absent' is no folder of a model"),
        (["smollm2-135m", "--stock", "new"], "'smollm2-135m' is no folder of a model"),
        (["small/config.json", "--stock", "new"], "no folder of a model"),
        (["cut", "--stock", "new"], "corrupt or cut short"),
        (["small"], "--stock"),
        (["small", "--stock", "new", "--json", "absent/export.json"], "--json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(modegpt, folders, dense_folder, tmp_path, monkeypatch, arguments, words):
    shutil.copytree(folders.small, tmp_path / "small")
    shutil.copytree(dense_folder, tmp_path / "dense")
    shutil.copytree(folders.small, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    done = modegpt("export", *arguments)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("modegpt: ") and done.err.count("\n") == 1 and words in done.err
    assert contents(tmp_path) == before


def test_help_shows_what_to_type(modegpt):
    assert "modegpt export small --stock plain" in modegpt("export", "--help").out
