"""A compressed checkpoint goes places: other folders, other programs, environments without this package."""

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)

import modegpt.modeling
from modegpt import ModegptError, compress, load_model
from modegpt.checkpoint.folder import save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("llama", "opt", "qwen3", "olmo2")
PLACES = ("copied", "renamed", "sharded", "on any device", "partly on disk")
TOKENS = torch.randint(2, 128, (6, 40), generator=torch.Generator().manual_seed(1))
PROMPT = "Invented words"

# Reads what to do from stdin, and goes on when one of them fails: starting Python costs more than all of them.
PROGRAM = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, pipeline

torch.set_num_threads(1)
job, said, logits = json.load(sys.stdin), {}, {}

@torch.no_grad()
def load(place, folder, options):
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    logits[place] = model(torch.tensor(job["tokens"])).logits.contiguous()
    return type(model).__module__.split(".")[0], sorted({p.device.type for p in model.parameters()})

def write(place, folder, options):
    writer = pipeline("text-generation", model=folder, device="cpu", **options)
    return writer(job["prompt"], max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]

for place, (action, folder, options) in job["todo"].items():
    try:
        said[place] = {"load": load, "write": write}[action](place, folder, options)
    except BaseException as error:
        said[place] = f"{type(error).__name__}: {error}"
said["modules"] = [name for name in sys.modules if name.split(".")[0] == "modegpt"]
save_file(logits, job["out"], {"said": json.dumps(said)})
"""
WITH_MODEGPT = "import modegpt.modeling\n"
WITHOUT_MODEGPT = """
import sys

class Uninstalled:
    @staticmethod
    def find_spec(name, *_):
        if name.split(".")[0] == "modegpt":
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Uninstalled)
"""


def run_program(start: str, todo: dict, folder: Path) -> tuple[dict, dict]:
    """What a fresh Python says of each thing to do, and the logits that it computed."""
    folder.mkdir()
    out = folder / "logits.safetensors"
    job = {"todo": todo, "tokens": TOKENS.tolist(), "prompt": PROMPT, "out": str(out)}
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", start + PROGRAM],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with safe_open(out, "pt") as file:
        return json.loads(file.metadata()["said"]), load_file(out)


def tiny_normed(config: type[PreTrainedConfig], vocab_size: int) -> PreTrainedModel:
    """A Qwen3 or an OLMo 2."""
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "initializer_range": 0.2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(vocab_size=vocab_size, **sizes, **heads)).eval()


@pytest.fixture(scope="module")
def models(tiny_llama, tiny_opt, tiny_tokenizer):
    """A compressed model of each family."""
    builders = {"llama": tiny_llama, "opt": tiny_opt}
    builders |= {"qwen3": partial(tiny_normed, Qwen3Config), "olmo2": partial(tiny_normed, Olmo2Config)}
    dense = {family: build(vocab_size=len(tiny_tokenizer)) for family, build in builders.items()}
    return {family: compress(model, TOKENS, ratio=0.3, multiple_of=2)[0] for family, model in dense.items()}


@pytest.fixture(scope="module")
def saved(models, tiny_tokenizer, tmp_path_factory):
    """Their folders."""
    root = tmp_path_factory.mktemp("saved")
    for family, model in models.items():
        save_checkpoint(root / family, model, tiny_tokenizer, {})
    return {family: root / family for family in models}


@pytest.fixture(scope="module")
def places(models, saved, tmp_path_factory):
    """Where each checkpoint has been brought, and how it is opened there."""
    root, places = tmp_path_factory.mktemp("places"), {}
    for family, folder in saved.items():
        copied = shutil.copytree(folder, root / "copied" / folder.name)
        renamed = shutil.copytree(folder, root / f"30% off, v1.0 {family}")
        models[family].save_pretrained(root / "sharded" / family, max_shard_size="20KB")
        small_memory = {"max_memory": {"cpu": "250KB"}, "offload_folder": str(root / "offload" / family)}
        places |= {
            f"{family}, copied": (copied, {}),
            f"{family}, renamed": (renamed, {}),
            f"{family}, sharded": (root / "sharded" / family, {}),
            f"{family}, on any device": (folder, {"device_map": "auto"}),
            f"{family}, partly on disk": (folder, {"device_map": "auto", **small_memory}),
        }
    return places


def booby_trapped(folder: Path, copy: Path, **config) -> Path:
    """A copy whose modeling file, if it is ever run, leaves a file `ran` beside itself."""
    shutil.copytree(folder, copy)
    for file in copy.glob("modeling_*.py"):
        file.write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    edit_config(copy, **config)
    return copy


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.fixture(scope="module")
def trapped(saved, tmp_path_factory):
    """Checkpoints with a modeling file that should not be run, their architecture known or not."""
    root, folders = tmp_path_factory.mktemp("trapped"), {}
    for family, folder in saved.items():
        folders[f"{family}, trapped"] = booby_trapped(folder, root / family)
        folders[f"{family}, trapped and unknown"] = booby_trapped(folder, root / f"my {family}", model_type="mystery")
    return folders


@pytest.fixture(scope="module")
def with_modegpt(places, saved, trapped, tmp_path_factory):
    todo = {place: ("load", str(folder), options) for place, (folder, options) in places.items()}
    todo |= {f"{family}, written": ("write", str(folder), {}) for family, folder in saved.items()}
    todo |= {name: ("load", str(folder), {}) for name, folder in trapped.items()}
    return run_program(WITH_MODEGPT, todo, tmp_path_factory.mktemp("with") / "run")


@pytest.fixture(scope="module")
def armed(saved, tmp_path_factory):
    """Trapped checkpoints for those who run what comes with a model."""
    root = tmp_path_factory.mktemp("armed")
    return {family: booby_trapped(folder, root / family) for family, folder in saved.items()}


@pytest.fixture(scope="module")
def without_modegpt(places, saved, armed, tmp_path_factory):
    trust = {"trust_remote_code": True}
    todo = {place: ("load", str(folder), options | trust) for place, (folder, options) in places.items()}
    todo |= {f"{family}, written": ("write", str(folder), trust) for family, folder in saved.items()}
    todo |= {f"{family}, trusted": ("load", str(folder), trust) for family, folder in armed.items()}
    return run_program(WITHOUT_MODEGPT, todo, tmp_path_factory.mktemp("without") / "run")


@pytest.fixture(params=["with modegpt", "without modegpt"])
def elsewhere(request):
    """What another program said and computed, and the package that the model's class must come from."""
    said, logits = request.getfixturevalue(request.param.replace(" ", "_"))
    return said, logits, "modegpt" if request.param == "with modegpt" else "transformers_modules"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_elsewhere_are_those_before_saving(elsewhere, models, family, place):
    said, logits, package = elsewhere
    devices = ["cpu", "meta"] if place == "partly on disk" else ["cpu"]  # accelerate shows what is on disk as meta
    assert said[f"{family}, {place}"] == [package, devices]
    with torch.no_grad():
        torch.testing.assert_close(logits[f"{family}, {place}"], models[family](TOKENS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_writes_what_the_model_did_before_saving(elsewhere, models, tiny_tokenizer, family):
    prompt = tiny_tokenizer(PROMPT, return_tensors="pt")
    ids = models[family].generate(**prompt, max_new_tokens=8, do_sample=False)
    expected = tiny_tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])
    assert expected and elsewhere[0][f"{family}, written"] == expected


@pytest.mark.slow
def test_this_package_was_really_absent(without_modegpt, with_modegpt):
    assert without_modegpt[0]["modules"] == []
    assert "modegpt.modeling" in with_modegpt[0]["modules"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_modeling_files_travel_as_they_are_and_need_nothing_else(saved, family):
    files = list(saved[family].glob("*.py"))
    assert len(files) == 1 + (family in ("qwen3", "olmo2"))  # which brings the Llama's
    for file in files:
        text = (Path(modegpt.modeling.__file__).parent / file.name).read_bytes()
        assert file.read_bytes() == text
        nodes = list(ast.walk(ast.parse(text)))
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        assert {node.module for node in froms if node.level} <= {other.stem for other in files}
        froms = [node for node in froms if not node.level]
        assert {name.split(".")[0] for name in [*plain, *(node.module for node in froms)]} <= {"torch", "transformers"}
        names = [*plain, *(f"{node.module}.{alias.name}" for node in froms for alias in node.names)]
        assert [name for name in names if any(part.startswith("_") for part in name.split("."))] == []
        strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert [string for string in strings if string.startswith(("/", "~")) or ":\\" in string] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_file_of_the_folder_names_the_place_where_it_was_made(saved, family):
    texts = [path.read_text() for path in saved[family].iterdir() if path.suffix in (".json", ".py", ".md")]
    assert len(texts) > 3 and not any(str(saved[family].parent) in text or str(Path.cwd()) in text for text in texts)


def test_a_folder_of_the_command_line_names_no_place_either(modegpt, dense_folder, text_file, tmp_path):
    """Not the model's, nor the text's, nor its own; in an export neither."""
    small, plain = tmp_path / "deep" / "small", tmp_path / "deep" / "plain"
    small.parent.mkdir()
    texts = ["--calibration", text_file, "--samples", "8", "--seq-len", "64"]
    assert modegpt("compress", dense_folder, "--ratio", "0.3", "--out", small, *texts).code == 0
    assert modegpt("evaluate", small, "--text", text_file, "--windows", "1", "--seq-len", "64").code == 0
    assert modegpt("export", small, "--stock", plain).code == 0
    for folder in (small, plain):
        for file in folder.iterdir():
            if file.suffix in (".json", ".md", ".py"):
                text = file.read_text()
                for place in (dense_folder.parent, text_file.parent, small.parent, Path.cwd()):
                    assert f"{place}/" not in text, (file.name, place)
        assert text_file.name in (folder / "README.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_adapters_train_and_merge(saved, family):
    model, _ = load_model(str(saved[family]), dtype="float32")
    with torch.no_grad():
        before = model(TOKENS).logits
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4))
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.01)
    loss = adapted(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    optimizer.step()
    adapted.eval()
    with torch.no_grad():
        after = adapted(input_ids=TOKENS, labels=TOKENS)
        merged = adapted.merge_and_unload()(TOKENS).logits
    assert after.loss < loss - 1e-3
    assert (after.logits - before).abs().max() > 1e-2
    torch.testing.assert_close(merged, after.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_modeling_file_that_came_with_the_model_is_not_run(with_modegpt, trapped, family):
    said = with_modegpt[0]
    assert said[f"{family}, trapped"] == ["modegpt", ["cpu"]]
    assert "trust_remote_code" in said[f"{family}, trapped and unknown"]
    load_model(str(trapped[f"{family}, trapped"]))
    with pytest.raises(ModegptError, match="which modegpt does not run"):
        load_model(str(trapped[f"{family}, trapped and unknown"]))
    assert not [folder for folder in trapped.values() if (folder / "ran").exists()]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trap_works_on_those_who_trust_it(without_modegpt, armed, family):
    assert without_modegpt[0][f"{family}, trusted"].startswith("AttributeError")  # the file defines no model
    assert (armed[family] / "ran").exists()


class Explosive:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(params=FAMILIES)
def damaged(request, saved, tmp_path):
    """A checkpoint to be damaged."""
    return shutil.copytree(saved[request.param], tmp_path / "model")


def test_pickled_weights_load_but_run_nothing(damaged, tmp_path):
    torch.save(load_file(damaged / "model.safetensors"), damaged / "pytorch_model.bin")
    (damaged / "model.safetensors").unlink()
    assert load_model(str(damaged))[0].config.model_type.startswith("modegpt_")
    torch.save({"weight": Explosive(tmp_path / "ran")}, damaged / "pytorch_model.bin")
    with pytest.raises(ModegptError):
        load_model(str(damaged))
    assert not (tmp_path / "ran").exists()
    torch.load(damaged / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # the charge was live


def other_rank(folder: Path, name: str) -> None:
    ranks = json.loads((folder / "config.json").read_text())[name]
    edit_config(folder, **{name: [ranks[0] + 2, *ranks[1:]]})


def lose_a_shard(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(folder.glob("model-00002-*")).unlink()


DAMAGE = {
    "query-key rank": (lambda f: other_rank(f, "query_key_ranks"), "do not have the sizes that its config.json says"),
    "value rank": (lambda f: other_rank(f, "value_ranks"), "do not have the sizes that its config.json says"),
    "MLP rank": (lambda f: other_rank(f, "mlp_ranks"), "do not have the sizes that its config.json says"),
    "no ranks": (lambda f: edit_config(f, value_ranks=None), "value_ranks must list one"),
    "too few ranks": (lambda f: edit_config(f, mlp_ranks=[8]), "mlp_ranks must list one"),
    "no numbers": (lambda f: edit_config(f, query_key_ranks=["8"] * 3), "query_key_ranks must list one"),
    "a lost shard": (lose_a_shard, "lacks a weights file"),
    "the config of a BERT": (lambda f: BertConfig(hidden_size=48).save_pretrained(f), "the weights of .* lack"),
    "the config of a T5": (lambda f: T5Config().save_pretrained(f), "is no causal language model"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_one_clear_line(damaged, name):
    damage, words = DAMAGE[name]
    damage(damaged)
    with pytest.raises(ModegptError, match=words) as caught:
        load_model(str(damaged))
    assert "\n" not in str(caught.value) and str(damaged) in str(caught.value)
