"""A folder is either complete or not there, whatever goes wrong while it is written."""

import copy
import errno
import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from modegpt.checkpoint.export import stock_model
from modegpt.checkpoint.folder import REPORT_FILE, check_output, save_checkpoint
from modegpt.errors import ModegptError
from modegpt.methods import METHODS
from modegpt.pipeline import compress

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(dense_folder):
    tokens = torch.randint(2, 128, (6, 40), generator=torch.Generator().manual_seed(1))
    return compress(AutoModelForCausalLM.from_pretrained(dense_folder), tokens, ratio=0.3, multiple_of=2)[0]


@pytest.fixture
def save(small, tiny_tokenizer):
    def call(folder, report=None, overwrite=False):
        save_checkpoint(folder, small, tiny_tokenizer, report or {"seed": 0}, overwrite)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def is_whole(folder: Path) -> bool:
    AutoTokenizer.from_pretrained(folder)
    json.loads((folder / REPORT_FILE).read_text())
    return all(torch.isfinite(p).all() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


@contextmanager
def largest_file(size: int):
    """No file may grow beyond `size` bytes: what writing to a full disk is like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_folder_holds_weights_as_safetensors_only_and_loads_to_the_same_logits(small, save, tmp_path):
    save(tmp_path / "out", {"seed": 7})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", REPORT_FILE} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".h5"))]
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text()) == {"seed": 7}
    assert os.listdir(tmp_path) == ["out"]
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), torch.arange(2, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, small(ids).logits)


def test_weights_take_the_space_that_their_parameters_need(small, save, tmp_path):
    save(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys() if "rotary_index" not in name)
    assert stored == sum(p.numel() for p in small.parameters())


def test_model_without_tokenizer_is_saved_without_one(small, tmp_path):
    save_checkpoint(tmp_path / "out", small, None, {})
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_parents_are_made(save, tmp_path):
    save(tmp_path / "a" / "b" / "out")
    assert is_whole(tmp_path / "a" / "b" / "out")


def test_empty_folder_is_not_taken(save, tmp_path):
    (tmp_path / "out").mkdir()
    save(tmp_path / "out")
    assert is_whole(tmp_path / "out")


def test_taken_folder_is_refused_and_kept(save, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ModegptError, match=r"already holds something.*--overwrite"):
        save(tmp_path.parent / tmp_path.name)
    assert contents(tmp_path) == before


def test_overwrite_replaces_everything(save, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pytorch_model.bin").write_text("an older model")
    save(tmp_path / "out", overwrite=True)
    assert is_whole(tmp_path / "out")
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_a_link_replaces_what_it_points_to(save, tmp_path):
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "model.safetensors").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    for _ in range(2):
        save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and is_whole(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"] and os.listdir(tmp_path / "disk") == ["model"]


@pytest.mark.parametrize("name", ["partial", "old", "unfinished"])
def test_hidden_folders_beside_the_output_are_somebody_elses(save, tmp_path, name):
    """A user's own, or what kill -9 left: neither is removed, nor confuses the next run."""
    (tmp_path / f".out.{name}").mkdir()
    (tmp_path / f".out.{name}" / "config.json").write_text('{"half": ')
    before = contents(tmp_path)
    for overwrite in (False, True):
        save(tmp_path / "out", overwrite=overwrite)
        assert is_whole(tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == [f".out.{name}", "out"]
        assert contents(tmp_path).items() >= before.items()


FOREIGN = {
    "a thesis": ["config.json", "model.safetensors", "thesis.tex"],
    "notes": ["config.json", "model.safetensors", "notes.txt"],
    "a repository": ["config.json", "model.safetensors", ".git/HEAD"],
    "a folder": ["config.json", "model.safetensors", "figures/a.png"],
    "training state": ["config.json", "model.safetensors", "optimizer.pt"],
    "a config of something else": ["config.json"],
    "a readme": ["README.md", "LICENSE"],
    "a script": ["model.safetensors", "run.py"],
    "a hidden file": ["model.safetensors", ".env"],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_only_a_checkpoint_is_ever_replaced(save, tmp_path, name):
    for path in FOREIGN[name]:
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_text("mine")
    before = contents(tmp_path)
    for attempt in (lambda: check_output(tmp_path / "out", True), lambda: save(tmp_path / "out", overwrite=True)):
        with pytest.raises(ModegptError, match=r"no checkpoint that may be replaced \((it holds|it has no)"):
            attempt()
    assert contents(tmp_path) == before


def test_of_two_writers_one_gets_the_folder_whole(small, tmp_path):
    def write(seed):
        try:
            save_checkpoint(tmp_path / "out", small, None, {"seed": seed})
        except ModegptError as error:
            return str(error)
        return seed

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(write, range(4)))
    winners = [seed for seed in said if isinstance(seed, int)]
    assert [json.loads((tmp_path / "out" / REPORT_FILE).read_text())["seed"]] == winners
    assert all("out" in word for word in said if isinstance(word, str))
    assert os.listdir(tmp_path) == ["out"]


def test_a_name_that_is_too_long_or_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(ModegptError, match="too long"):
        check_output(tmp_path / ("n" * 250), overwrite=False)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with pytest.raises(ModegptError, match="mount point"):
        check_output(tmp_path / "disk", overwrite=True)


def test_only_known_entries_travel(tiny_llama, tiny_tokenizer, tmp_path):
    """Those of the source are its own: code that somebody may run, and places of a machine."""
    code = {"custom_pipelines": {"text-generation": {"impl": "evil.Pipe"}}, "auto_map": {"AutoModel": "evil.Model"}}
    places = {"_name_or_path": "/mnt/me/secret", "checkpoint_path": "/mnt/me/secret", "transformers_weights": "x"}
    model = tiny_llama(**code, **places)
    model.config._name_or_path = "/mnt/me/secret"
    for name, value in {"custom_generate": "evil/repo", "assets": "/mnt/me/secret"}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.eos_token_id = [5, 6]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.init_kwargs |= {
        "auto_map": {"AutoTokenizer": ["evil.Tok", None]},
        "tokenizer_file": "/mnt/me/secret/tokenizer.json",
        "special_tokens_map_file": "/mnt/me/secret/map.json",
        "name_or_path": "/mnt/me/secret",
    }
    small, _ = compress(model, torch.arange(2, 128).view(6, 21), ratio=0.3, multiple_of=2)
    plain, _ = stock_model(small)
    dropped, _ = METHODS["shortgpt"].compress(tiny_llama(**code, **places), torch.arange(3.0), 0.4)
    for number, each in enumerate((small, plain, dropped)):
        folder = tmp_path / str(number)
        save_checkpoint(folder, each, tokenizer, {"seed": 0})
        text = "".join(file.read_text() for file in folder.glob("*.json"))
        assert "evil" not in text and "secret" not in text and "transformers_weights" not in text
        assert is_whole(folder)
        config = json.loads((folder / "config.json").read_text())
        assert ("auto_map" in config) == (each is small) and config["rope_theta"] == 10000.0
    assert json.loads((tmp_path / "0" / "generation_config.json").read_text())["eos_token_id"] == [5, 6]
    assert AutoTokenizer.from_pretrained(tmp_path / "0").bos_token == tiny_tokenizer.bos_token


def half_a_file_then(error):
    def fail(_self, folder):
        (Path(folder) / "half").write_text("half")
        raise error

    return fail


def break_at(monkeypatch, step, error):
    """Let the named step of saving end in `error`."""

    def fail(*_args, **_kwargs):
        raise error

    rename = Path.rename
    if step in ("weights", "tokenizer"):
        owner = {"weights": "PreTrainedModel", "tokenizer": "PreTrainedTokenizerFast"}[step]
        monkeypatch.setattr(f"transformers.{owner}.save_pretrained", half_a_file_then(error))
    elif step == "report":
        monkeypatch.setattr("modegpt.checkpoint.folder.to_json", fail)
    else:
        moved = {"move the old away": "out", "move in": ".partial"}[step]
        monkeypatch.setattr(Path, "rename", lambda path, to: (fail if path.name.endswith(moved) else rename)(path, to))


STEPS = ["weights", "tokenizer", "report", "move in"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("step", "taken"), [*((step, taken) for step in STEPS for taken in (False, True)), ("move the old away", True)]
)
def test_failure_at_any_step_leaves_everything_as_it_was(monkeypatch, save, tmp_path, step, taken, error):
    if taken:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "model.safetensors").write_text("an older model")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        break_at(patch, step, error)
        with pytest.raises(ModegptError if isinstance(error, OSError) else type(error)):
            save(tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == (["out"] if taken else [])
    save(tmp_path / "out", overwrite=True)
    assert is_whole(tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", REPORT_FILE])
def test_full_disk_is_one_clear_error_at_whatever_file_it_strikes(save, tmp_path, name):
    save(tmp_path / "whole", {"notes": 100 * "long "})
    limit = (tmp_path / "whole" / name).stat().st_size - 1
    with largest_file(limit), pytest.raises(ModegptError, match=r"cannot write .*out: .*File too large"):
        save(tmp_path / "out", {"notes": 100 * "long "})
    assert os.listdir(tmp_path) == ["whole"]


def test_full_disk_at_the_tokenizer_is_the_same_error(tiny_llama, tiny_tokenizer, tmp_path):
    """tokenizers raises a bare Exception."""
    model = tiny_llama(hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=2, vocab_size=8)
    save_checkpoint(tmp_path / "whole", model, tiny_tokenizer, {})
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    assert sizes["tokenizer.json"] == max(sizes.values())
    with largest_file(sizes["tokenizer.json"] - 1), pytest.raises(ModegptError, match=r"cannot write .*File too large"):
        save_checkpoint(tmp_path / "out", model, tiny_tokenizer, {})
    assert os.listdir(tmp_path) == ["whole"]


def test_bug_while_saving_is_not_called_a_full_disk(monkeypatch, save, tmp_path):
    break_at(monkeypatch, "weights", KeyError("bug"))
    with pytest.raises(KeyError):
        save(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ModegptError, match="is a file"):
        check_output(tmp_path / "out", overwrite=True)


def test_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModegptError, match=r"cannot write .*file is no folder"):
        check_output(tmp_path / "file" / "out", overwrite=True)


def test_output_below_a_folder_that_may_not_be_written_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("modegpt.checkpoint.folder.os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ModegptError, match="cannot write"):
        check_output(tmp_path / "a" / "out", overwrite=False)


@pytest.mark.parametrize("name", [".", "", "..", "/", "../here"])
def test_current_folder_and_those_above_it_are_never_replaced(monkeypatch, tmp_path, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModegptError, match="current folder"):
        check_output(Path(name), overwrite=True)
