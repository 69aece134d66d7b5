"""A folder with random weights: what loading finds in it, going on after a stop, and not writing over others."""

import json

import pytest
import torch

from modegpt.errors import ModegptError
from modegpt.sources import load_model
from modegpt.study.bench.random_folder import make_folder
from modegpt.study.bench.shapes import config_of, random_model

PLACE = (torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt"])
def test_it_loads_with_weights_as_a_new_model_has_them(tmp_path, shape):
    make_folder(tmp_path / "dense", shape, 1, *PLACE)
    found, _ = load_model(str(tmp_path / "dense"), dtype="bfloat16")
    wanted = random_model(shape, 1, device="cpu").state_dict()
    assert found.config.num_hidden_layers == 1 and found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, wanted[name]), name
        else:
            assert tensor.float().std().item() == pytest.approx(wanted[name].float().std().item(), rel=0.1), name
    assert torch.isfinite(found(torch.tensor([[3, 4, 5]])).logits).all()


def test_a_stopped_try_goes_on_to_the_same_folder(tmp_path):
    make_folder(tmp_path / "whole", "tiny-llama", None, *PLACE)
    make_folder(tmp_path / "stopped", "tiny-llama", None, *PLACE)
    kept = tmp_path / "stopped" / "model-00001-of-00003.safetensors"
    for file in ("model.safetensors.index.json", "model-00002-of-00003.safetensors"):
        (tmp_path / "stopped" / file).unlink()
    (tmp_path / "stopped" / "model-00002-of-00003.partial").write_bytes(b"half of it")
    before = kept.stat().st_mtime_ns
    make_folder(tmp_path / "stopped", "tiny-llama", None, *PLACE)
    assert kept.stat().st_mtime_ns == before
    found, wanted = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("stopped", "whole"))
    assert found == wanted
    layers = [found[f"model-0000{number}-of-00003.safetensors"] for number in (1, 2)]
    assert layers[0][-1000:] != layers[1][-1000:]  # no two layers are alike


def test_what_is_something_else_stays(tmp_path):
    make_folder(tmp_path / "dense", "tiny-llama", None, *PLACE)
    with pytest.raises(ModegptError, match="holds another model, of another num_hidden_layers"):
        make_folder(tmp_path / "dense", "tiny-llama", 1, *PLACE)
    with pytest.raises(ModegptError, match="holds another model, of another model_type"):
        make_folder(tmp_path / "dense", "tiny-opt", None, *PLACE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(ModegptError, match="already holds something"):
        make_folder(tmp_path / "mine", "tiny-llama", None, *PLACE)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_index_lists_every_tensor_and_the_bytes_of_all_files(tmp_path):
    make_folder(tmp_path / "dense", "tiny-llama", None, *PLACE)
    index = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())
    files = list((tmp_path / "dense").glob("*.safetensors"))
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert len(files) == config_of("tiny-llama").num_hidden_layers + 1
    assert index["metadata"]["total_size"] == sum(file.stat().st_size for file in files)
