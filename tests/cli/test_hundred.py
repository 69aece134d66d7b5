"""A hundred odd folders, texts and options at every verb: it works, or it is one line; nothing is left or touched."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**values):
    def change(folder: Path) -> None:
        file = folder / "config.json"
        entries = json.loads(file.read_text()) | values
        file.write_text(json.dumps({name: value for name, value in entries.items() if value != "gone"}))

    return change


def write(name: str, text: str | bytes):
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def tensors(change):
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


def cut(share: float):
    def shorten(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: int(share * len(data))])

    return shorten


def index(text: str):
    def write_index(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return write_index


FINE, REFUSED, EITHER = {0}, {2}, {0, 2}  # exit codes
DOWN = "model.layers.1.mlp.down_proj.weight"
FOLDERS = {
    "as it is": (lambda folder: None, FINE),
    "dtype with torch.": (config(torch_dtype="torch.float32", dtype="gone"), EITHER),
    "pad is the vocabulary": (config(pad_token_id=300), EITHER),
    "attentions put out": (config(output_attentions=True), EITHER),
    "tuples returned": (config(return_dict=False), EITHER),
    "hidden states put out": (config(output_hidden_states=True), EITHER),
    "no cache": (config(use_cache=False), FINE),
    "unknown entries": (config(nonsense={"a": [1]}, custom_pipelines={"x": {"impl": "evil.py"}}), FINE),
    "no layers": (config(num_hidden_layers=0), REFUSED),
    "fewer layers than tensors": (config(num_hidden_layers=2), REFUSED),
    "unknown activation": (config(hidden_act="swoosh"), REFUSED),
    "unknown rope": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), REFUSED),
    "heads do not divide": (config(num_attention_heads=5), REFUSED),
    "negative width": (config(hidden_size=-48), REFUSED),
    "width is text": (config(hidden_size="wide"), REFUSED),
    "other width": (config(intermediate_size=96), REFUSED),
    "no model type": (config(model_type="gone"), REFUSED),
    "unknown model type": (config(model_type="mystery"), REFUSED),
    "code of its own": (config(model_type="mystery", auto_map={"AutoConfig": "evil.Config"}), REFUSED),
    "quantized by gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), REFUSED),
    "quantized by nobody": (config(quantization_config={"quant_method": "magic"}), REFUSED),
    "config null": (write("config.json", "null"), REFUSED),
    "config a list": (write("config.json", "[]"), REFUSED),
    "config empty": (write("config.json", ""), REFUSED),
    "config not UTF-8": (write("config.json", b"\xff\xfe{"), REFUSED),
    "config deep": (write("config.json", "[" * 100_000), REFUSED),
    "no config": (remove("config.json"), REFUSED),
    "no weights": (remove("model.safetensors"), REFUSED),
    "weights empty": (cut(0), REFUSED),
    "weights cut": (cut(0.7), REFUSED),
    "weights cut in the header": (cut(0.001), REFUSED),
    "weights with a huge header": (write("model.safetensors", b"\xff" * 8 + b"{}"), REFUSED),
    "a tensor gone": (tensors(lambda w: w.pop(DOWN)), REFUSED),
    "a tensor of another shape": (tensors(lambda w: w.update({DOWN: w[DOWN][:, :8].clone()})), REFUSED),
    "index without metadata": (index('{"weight_map": {}}'), REFUSED),
    "index without a map": (index('{"metadata": {}}'), REFUSED),
    "index empty": (index(""), REFUSED),
    "index names another file": (
        index(json.dumps({"metadata": {}, "weight_map": {DOWN: "gone.safetensors"}})),
        REFUSED,
    ),
    "no tokenizer": (remove("tokenizer.json"), REFUSED),
    "tokenizer broken": (write("tokenizer.json", "{"), REFUSED),
    "tokenizer null": (write("tokenizer.json", "null"), REFUSED),
    "generation config broken": (write("generation_config.json", "{"), EITHER),
    "generation config odd": (write("generation_config.json", '{"do_sample": false, "temperature": 0.1}'), EITHER),
}
TEXTS = {
    "plain": ("a.txt", "word " * 2000, FINE),
    "not ASCII": ("a.txt", "größe 日本 🙂 " * 500, FINE),
    "with a byte order mark": ("a.txt", "\ufeff" + "word " * 2000, FINE),
    "lines": ("a.jsonl", '{"text": "some words here"}\n' * 800, FINE),
    "lines with a byte order mark": ("a.jsonl", "\ufeff" + '{"text": "some words here"}\n' * 800, FINE),
    "empty": ("a.txt", "", REFUSED),
    "blank": ("a.txt", "   \n", REFUSED),
    "short": ("a.txt", "word", REFUSED),
    "not UTF-8": ("a.txt", b"\xff\xfe\x00" * 500, REFUSED),
    "lines without text": ("a.jsonl", '{"words": "x"}\n' * 50, REFUSED),
    "lines that are lists": ("a.jsonl", "[1]\n" * 50, REFUSED),
    "lines cut short": ("a.jsonl", '{"text": "a', REFUSED),
    "lines too deep": ("a.jsonl", "[" * 100_000, REFUSED),
    "lines with half a character": ("a.jsonl", '{"text": "\\ud800 word word word"}\n' * 500, EITHER),
    "lines with a number as text": ("a.jsonl", '{"text": 3}\n' * 50, REFUSED),
}
OPTIONS = {
    "compress": "--ratio=2 --ratio=nan --ratio=-0.1 --ratio=x --samples=0 --samples=-1 --seq-len=1 --seed=-1 "
    "--epsilon=0 --epsilon=inf --ridge=nan --ridge=-1 --modules=none --modules= --modules=mlp,mlp,x "
    "--method= --method=MODEGPT --allocation=fair --inputs=x --multiple-of=0 --multiple-of=4096 "
    "--batch-size=0 --device= --device=gpu --device=cuda:99 --dtype=int8 --dtype= --calibration= "
    "--calibration=nowhere.txt --calibration=wikitext2:nothing --json= --json=. --json=no/where.json "
    "--json=/dev/full --json=theirs --out=theirs --out=theirs/thesis.txt --out=. --offload-hidden "
    f"--out={'n' * 260} --json={'n' * 260} --nonsense --ratio",
    "evaluate": "--windows=-1 --windows=99999 --seq-len=1 --seq-len=0 --batch-size=0 --limit=3 --tasks=magic --tasks= "
    "--text= --text=nowhere.txt --device=tpu --dtype=float8 --json=theirs --json=/dev/full",
    "generate": "--max-new-tokens=0 --max-new-tokens=x --device=tpu --dtype=float8 --json=theirs --json=/dev/full",
    "compare": "--ratios= --ratios=0 --ratios=0.3,0.3 --ratios=x --methods=magic --methods=svd,svd --out=theirs "
    "--out=theirs/thesis.json --out=a.txt --samples=0 --windows=-1 --seed=-1",
}


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.fixture
def attempt(modegpt, dense_folder, tmp_path, monkeypatch):
    """Runs a command in a folder that holds `model` and something of the user's, and judges how it ended."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dense_folder, tmp_path / "model")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    (tmp_path / "theirs" / "thesis.json").write_text('{"also": "mine"}')
    (tmp_path / "words.txt").write_text("some other words and a few more of them, " * 400)

    def run(codes: set[int], *words: object, new: tuple[str, ...] = ()) -> None:
        before = contents(tmp_path)
        done = modegpt(*words)
        lines = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
        assert done.code in codes, (done.code, done.err)
        assert [line[:9] for line in lines] == ["modegpt: "] * (done.code != 0), done.err
        after = contents(tmp_path)
        made = {name for name in after if done.code == 0 and name.split("/")[0] in new}
        assert {name: after[name] for name in after.keys() - made} == {
            name: before[name] for name in before.keys() - made
        }
        shutil.rmtree(tmp_path / "small", ignore_errors=True)

    return run


def commands(text: str = "words.txt") -> dict[str, list[str]]:
    """What would work, with little work."""
    compress = ["compress", "model", "--ratio", "0.3", "--out", "small", "--multiple-of", "2", "--samples", "4"]
    compress += ["--seq-len", "16", "--calibration", text]
    return {
        "compress": compress,
        "stream": [*compress, "--stream"],
        "evaluate": ["evaluate", "model", "--text", text, "--windows", "2", "--seq-len", "16"],
        "generate": ["generate", "model", "some words", "--max-new-tokens", "2"],
        "compare": ["compare", "model", "--out", "all.json", "--methods", "svd", "--ratios", "0.3", "--samples", "4"],
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(attempt, tmp_path, name):
    change, codes = FOLDERS[name]
    change(tmp_path / "model")
    for verb, words in commands().items():
        if verb != "compare":
            attempt(codes, *words, new=("small",))
    attempt(REFUSED, "export", "model", "--stock", "plain")  # it is not compressed


@pytest.mark.parametrize("name", TEXTS)
def test_text(attempt, tmp_path, name):
    file, text, codes = TEXTS[name]
    write(file, text)(tmp_path)
    for verb in ("compress", "stream", "evaluate"):
        attempt(codes, *commands(file)[verb], new=("small",))


@pytest.mark.parametrize(
    ("verb", "option"), [(verb, option) for verb, words in OPTIONS.items() for option in words.split()], ids=str
)
def test_option(attempt, verb, option):
    attempt(REFUSED, *commands()[verb], option)
    if verb == "compress":
        attempt(REFUSED, *commands()["stream"], option) if option != "--offload-hidden" else None


def test_nothing_is_an_option(attempt):
    for verb, words in commands().items():
        attempt(REFUSED, *words[:1])
        if verb == "generate":
            attempt(REFUSED, "generate", "model", "")


def test_devices_and_links_given_to_json(attempt, tmp_path):
    (tmp_path / "link.json").symlink_to("real.json")
    for file in ("/dev/null", "link.json"):
        attempt(FINE, *commands()["evaluate"], "--json", file, new=("real.json", "link.json"))
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text())["perplexity"]
    assert not os.path.isfile("/dev/null")
