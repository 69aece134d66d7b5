"""One set of rules for a model's folder: what is refused and what is taken, whole and streamed alike."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modegpt.errors import ModegptError
from modegpt.sources import load_model
from modegpt.streaming import compress_folder, open_model

CPU = torch.device("cpu")
FACTS = {"model": "tiny", "calibration": "noise", "samples": 6, "seq_len": 40, "seed": 0, "dtype": "float32"}
FACTS |= {"versions": {}, "command": "none", "device": "cpu"}
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def dense(tmp_path_factory, tiny_llama) -> dict[str, Path]:
    """A tiny Llama in one file, in shards, with tied embeddings, and its decoder alone; and an OPT's decoder."""
    folder = tmp_path_factory.mktemp("dense")
    tied = tiny_llama(tie_word_embeddings=True)
    tiny_llama().save_pretrained(folder / "one file")
    tiny_llama().save_pretrained(folder / "shards", max_shard_size="40KB")
    tied.save_pretrained(folder / "tied")
    tied.model.save_pretrained(folder / "decoder")
    return {path.name: path for path in folder.iterdir()}


def config(**values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def write(name: str, data: bytes | str) -> Change:
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Change:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return edit


def index(**values: object) -> Change:
    """Changes entries of the index; None removes one."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        entries = json.loads(path.read_text()) | values
        path.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))

    return change


def cut(pattern: str, size: int | None = None) -> Change:
    def change(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[-1]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if size is None else size])

    return change


QUERY = "model.layers.1.self_attn.q_proj.weight"
QUANTIZED = {
    method: ("one file", config(quantization_config={"quant_method": method, "bits": 4}), rf"is quantized \({method}\)")
    for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "somebody's own")
}
REFUSED: dict[str, tuple[str, Change, str]] = QUANTIZED | {
    "quantized, nobody says how": ("one file", config(quantization_config={"bits": 4}), "is quantized"),
    "whole numbers": ("one file", weights(lambda w: w.update({QUERY: w[QUERY].to(torch.int8)})), f"{QUERY} is I8"),
    "config null": ("one file", write("config.json", "null"), "no JSON object"),
    "config a list": ("one file", write("config.json", "[1]"), "no JSON object"),
    "config empty": ("one file", write("config.json", ""), "damaged"),
    "config not UTF-8": ("one file", write("config.json", b'{"model_type": "ll\xe4ma"}'), "not UTF-8"),
    "config with a byte order mark": ("one file", write("config.json", "\ufeff{}"), "damaged.*BOM"),
    "config too deep": ("one file", write("config.json", "[" * 100_000), "damaged"),
    "no layers": ("one file", config(num_hidden_layers=0), "no layers"),
    "fewer than no layers": ("one file", config(num_hidden_layers=-1), "no layers"),
    "unknown dtype": ("one file", config(dtype="float17"), "dtype is 'float17'"),
    "a dtype that is none": ("one file", config(torch_dtype="nn"), "dtype is 'nn'"),
    "unknown activation": ("one file", config(hidden_act="sillu"), "sillu"),
    "unknown rope type": ("one file", config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "spiral"),
    "a size of a word": ("one file", config(hidden_size="wide"), "not valid.*hidden_size"),
    "heads that do not divide": ("one file", config(num_key_value_heads=3), "sizes|cannot be loaded|not valid"),
    "other width": ("one file", config(intermediate_size=96), "do not have the sizes.*mlp"),
    "other vocabulary": ("one file", config(vocab_size=200), "do not have the sizes.*embed_tokens|sizes.*lm_head"),
    "more layers": ("one file", config(num_hidden_layers=4), "lack 9 tensors.*layers.3"),
    "fewer layers": ("one file", config(num_hidden_layers=2), "9 tensors that its architecture does not use"),
    "a head too few": ("one file", weights(lambda w: w.pop("lm_head.weight")), "lack 1 tensors.*lm_head"),
    "tied, neither is there": (
        "tied",
        weights(lambda w: w.pop("model.embed_tokens.weight")),
        "lack 2 .*lm_head",
    ),
    "a tensor twice": ("one file", weights(lambda w: w.update({QUERY[6:]: w[QUERY] + 1})), "twice"),
    "an unknown bias": ("one file", weights(lambda w: w.update({QUERY[:-6] + "bias": torch.ones(64)})), "q_proj.bias"),
    "an unknown bias, no prefix": (
        "decoder",
        weights(lambda w: w.update({QUERY[6:-6] + "bias": torch.ones(64)})),
        "q_proj.bias",
    ),
    "cut file": ("one file", cut("*.safetensors"), "corrupt or cut short"),
    "empty file": ("one file", cut("*.safetensors", 0), "corrupt or cut short"),
    "header bomb": ("one file", write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "corrupt or cut short"),
    "no header": ("one file", write("model.safetensors", struct.pack("<Q", 4) + b"null"), "corrupt or cut short"),
    "cut shard": ("shards", cut("*.safetensors"), "corrupt or cut short"),
    "empty shard": ("shards", cut("*.safetensors", 0), "corrupt or cut short"),
    "lost shard": ("shards", lambda f: min(f.glob("*.safetensors")).unlink(), "lacks a weights file"),
    "cut index": ("shards", cut("*.index.json"), "damaged"),
    "index null": ("shards", write("model.safetensors.index.json", "null"), "no JSON object"),
    "index without a map": ("shards", index(weight_map=None), "no weight_map"),
    "index with an empty map": ("shards", index(weight_map={}), "no weight_map"),
    "index with a list": ("shards", index(weight_map=["a"]), "no weight_map"),
    "index with numbers": ("shards", index(weight_map={QUERY: 1}), "no weight_map"),
    "index that points elsewhere": ("shards", index(weight_map={QUERY: "../x.safetensors"}), "outside the folder"),
    "bad generation config": ("one file", write("generation_config.json", '{"max_new_tokens": -1}'), "max_new_tokens"),
    "strange generation config": ("one file", write("generation_config.json", '{"compile_config": 1}'), "not valid"),
    "no generation config": ("one file", write("generation_config.json", "[]"), "no JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_whole_and_streamed(dense, tmp_path, tokens, name):
    source, change, words = REFUSED[name]
    folder = shutil.copytree(dense[source], tmp_path / "model")
    change(folder)
    said = []
    for attempt in (
        lambda: load_model(str(folder)),
        lambda: open_model(folder, CPU, torch.float32),
        lambda: compress_folder(
            folder, tmp_path / "small", tokens, None, device=CPU, dtype=torch.float32, facts=FACTS, ratio=0.3
        ),
    ):
        with pytest.raises(ModegptError, match=words) as caught:
            attempt()
        said.append(str(caught.value))
        assert "\n" not in said[-1] and str(folder) in said[-1]
    assert len(set(said)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def swap(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")


def both(folder: Path) -> None:
    """A folder with one file and an index: the file wins."""
    write("model.safetensors.index.json", '{"weight_map": {"x": "nowhere.safetensors"}}')(folder)


SAME: dict[str, tuple[str, Change]] = {
    "as it is": ("one file", lambda _: None),
    "shards": ("shards", lambda _: None),
    "tied": ("tied", lambda _: None),
    "no prefix": ("decoder", lambda _: None),
    "tied, the head is stored": ("tied", weights(swap)),
    "tied, both are stored": (
        "tied",
        weights(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()})),
    ),
    "called tied, with a head of its own": ("one file", config(tie_word_embeddings=True)),
    "torch.float16": ("one file", config(torch_dtype="torch.float16")),
    "dtype auto": ("one file", config(dtype="auto")),
    "dtype null": ("one file", config(dtype=None)),
    "pad beyond the vocabulary": ("one file", config(pad_token_id=128)),
    "pad -1": ("one file", config(pad_token_id=-1)),
    "attention maps": ("one file", config(output_attentions=True)),
    "hidden states": ("one file", config(output_hidden_states=True)),
    "tuples": ("one file", config(return_dict=False)),
    "no cache": ("one file", config(use_cache=False)),
    "null quantization": ("one file", config(quantization_config=None)),
    "unknown entries": ("one file", config(custom_pipelines={"x": 1}, auto_map={"AutoModel": "code.M"}, mine=[1])),
    "index without metadata": ("shards", index(metadata=None)),
    "index with foreign tensors": (
        "shards",
        lambda f: index(
            weight_map=json.loads((f / "model.safetensors.index.json").read_text())["weight_map"]
            | {"model.rotary_emb.inv_freq": "model-00001-of-00009.safetensors"}
        )(f),
    ),
    "one file and an index": ("one file", both),
    "old rotary buffers": (
        "one file",
        weights(lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})),
    ),
    "a temperature without sampling": (
        "one file",
        write("generation_config.json", '{"temperature": 0.6, "top_p": 0.9, "bos_token_id": 1}'),
    ),
    "generation pads beyond": ("one file", write("generation_config.json", '{"pad_token_id": 128}')),
    "half precision": ("one file", weights(lambda w: w.update({k: v.half().float() for k, v in w.items()}))),
    "a file nobody knows": ("one file", write("notes.txt", "mine")),
}


@pytest.mark.parametrize("name", SAME)
def test_taken_alike_whole_and_streamed(dense, tmp_path, tokens, name):
    source, change = SAME[name]
    folder = shutil.copytree(dense[source], tmp_path / "model")
    change(folder)
    whole, _ = load_model(str(folder), dtype="float32")
    wanted = whole(tokens).logits
    if name != "half precision":
        assert torch.equal(wanted, load_model(str(dense[source]), dtype="float32")[0](tokens).logits)

    target = tmp_path / "small"
    compress_folder(folder, target, tokens, None, device=CPU, dtype=torch.float32, facts=FACTS, ratio=0)
    small, _ = load_model(str(target), dtype="float32")
    assert torch.allclose(small(tokens).logits, wanted, atol=1e-3)
    saved = json.loads((target / "config.json").read_text())
    own_head = small.lm_head.weight is not small.model.embed_tokens.weight
    assert saved["tie_word_embeddings"] == (not own_head) == whole.config.tie_word_embeddings
    assert own_head == ("tied" not in source and source != "decoder")
    assert "quantization_config" not in saved
    open_model(folder, CPU, torch.float32)


def test_an_adapter_is_applied_whole_and_refused_streamed(dense, tmp_path, tokens):
    peft = pytest.importorskip("peft")
    folder = shutil.copytree(dense["one file"], tmp_path / "model")
    model, _ = load_model(str(folder), dtype="float32")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.eval()
    adapted.save_pretrained(folder)
    assert torch.allclose(load_model(str(folder), dtype="float32")[0](tokens).logits, adapted(tokens).logits)
    with pytest.raises(ModegptError, match=r"holds an adapter.*merge it"):
        open_model(folder, CPU, torch.float32)
