"""Layers from disk, one at a time: the same checkpoint as in memory, also after a kill in the middle."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modegpt import streaming
from modegpt.errors import ModegptError
from modegpt.pipeline import compress
from modegpt.sources import load_model
from modegpt.streaming import LayerWriter, advice_on_memory, compress_folder, open_model

CPU = torch.device("cpu")
FACTS = {"model": "tiny", "calibration": "noise", "samples": 6, "seq_len": 40, "seed": 0, "dtype": "float32"}
FACTS |= {"versions": {}, "command": "none", "device": "cpu"}


@pytest.fixture(params=["llama", "tied llama", "opt"])
def source(request, tiny_llama, tiny_opt, tmp_path) -> Path:
    changes = {"tie_word_embeddings": True} if request.param == "tied llama" else {}
    model = tiny_opt() if request.param == "opt" else tiny_llama(**changes)
    model.save_pretrained(tmp_path / "source", max_shard_size="40KB")
    return tmp_path / "source"


def run(source: Path, target: Path, tokens: torch.Tensor, **options: object):
    options = {"device": CPU, "dtype": torch.float32, "facts": FACTS, "ratio": 0.3} | options
    return compress_folder(source, target, tokens, None, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("options", [{}, {"allocation": "uniform"}, {"hidden_on": "cpu", "batch_size": 2}], ids=str)
def test_equals_compression_in_memory(source, tmp_path, tokens, options):
    found = run(source, tmp_path / "small", tokens, **options)
    options.pop("hidden_on", None)
    wanted, report = compress(load_model(str(source), dtype="float32")[0], tokens, ratio=0.3, **options)
    small, _ = load_model(str(tmp_path / "small"), dtype="float32")
    assert torch.equal(small(tokens).logits, wanted(tokens).logits)
    assert found.to_dict()["ranks"] == report.to_dict()["ranks"]
    assert found.parameters_after == report.parameters_after
    assert json.loads((tmp_path / "small" / "modegpt_report.json").read_text())["model"] == "tiny"
    assert not list(tmp_path.glob(".small*"))


def test_only_the_layer_at_work_and_the_next_are_in_memory(source, tokens):
    model, files, prefix = open_model(source, CPU, torch.float32)
    layers = model.get_submodule(prefix)
    assert all(weight.is_meta for weight in layers.parameters())
    rest = [weight for name, weight in model.named_parameters() if not name.startswith(prefix)]
    assert rest and not any(weight.is_meta for weight in (*rest, *model.buffers()))
    for index, _ in files.resident(layers, prefix):
        there = [not any(weight.is_meta for weight in layer.parameters()) for layer in layers]
        assert there == [at == index for at in range(len(layers))]
    assert all(weight.is_meta for weight in layers.parameters())


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_checkpoint(source, tmp_path, tokens, monkeypatch, after):
    run(source, tmp_path / "whole", tokens)
    save = streaming.save_file

    def stop(state: dict, file: Path, metadata: dict) -> None:
        save(state, file, metadata)
        if f"layer-{after:03d}" in file.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "small", tokens)
    assert not (tmp_path / "small").exists()
    assert len(list((tmp_path / ".small.unfinished").glob("*.safetensors"))) == after

    decomposed = []
    monkeypatch.setattr(streaming, "save_file", lambda *args: (decomposed.append(args[1].name), save(*args)))
    monkeypatch.setattr("modegpt.pipeline.block_influence", None)  # the scores were kept
    run(source, tmp_path / "small", tokens)
    assert len(decomposed) == 3 - after
    found, wanted = weights(tmp_path / "small"), weights(tmp_path / "whole")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    reports = [json.loads((tmp_path / name / "modegpt_report.json").read_text()) for name in ("small", "whole")]
    assert reports[0]["ranks"] == reports[1]["ranks"] and reports[0]["damping"] == reports[1]["damping"]


@pytest.mark.parametrize("changes", [{"ratio": 0.4}, {"epsilon": 0.1}, {"dtype": torch.bfloat16}], ids=str)
def test_a_run_with_other_settings_is_not_gone_on_with(source, tmp_path, tokens, monkeypatch, changes):
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "small", tokens)
    with pytest.raises(ModegptError, match=rf"unfinished run with another {next(iter(changes))}.*delete that folder"):
        run(source, tmp_path / "small", tokens, **changes)
    with pytest.raises(ModegptError, match="another tokens"):
        run(source, tmp_path / "small", tokens.flip(0))
    run(source, tmp_path / "small", tokens)


def test_what_is_refused_leaves_nothing_in_the_way(source, tmp_path, tokens):
    for wrong in ({"epsilon": -1.0}, {"multiple_of": 0}, {"ratio": 2.0}):
        with pytest.raises(ModegptError):
            run(source, tmp_path / "small", tokens, **wrong)
    run(source, tmp_path / "small", tokens)


def stop_after_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    save = streaming.save_file

    def stop(state: dict, file: Path, metadata: dict) -> None:
        if "layer-001" in file.name:
            raise KeyboardInterrupt
        save(state, file, metadata)

    monkeypatch.setattr(streaming, "save_file", stop)


def test_options_that_are_left_out_are_other_settings_too(source, tmp_path, tokens, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_one_layer(patch)
        run(source, tmp_path / "small", tokens, modules=("query_key", "mlp"))
    with pytest.raises(ModegptError, match=r"another modules.*now not given"):
        run(source, tmp_path / "small", tokens)


def test_another_model_in_the_same_folder_is_not_gone_on_with(source, tmp_path, tokens, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_one_layer(patch)
        run(source, tmp_path / "small", tokens)
    model, _ = load_model(str(source), dtype="float32")
    next(model.parameters()).data += 1
    model.save_pretrained(source, max_shard_size="40KB")
    with pytest.raises(ModegptError, match="another files"):
        run(source, tmp_path / "small", tokens)


def test_a_save_that_fails_keeps_the_finished_layers(source, tmp_path, tokens, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ModegptError, match="No space left"):
        patch.setattr("modegpt.checkpoint.folder._name_rotary_as_before", full)
        run(source, tmp_path / "small", tokens)
    assert len(list((tmp_path / ".small.unfinished").glob("layer-*.safetensors"))) == 3
    monkeypatch.setattr(streaming, "save_file", None)  # no layer is made again
    monkeypatch.setattr(streaming.LayerFiles, "resident", None)  # nor read
    run(source, tmp_path / "small", tokens)
    load_model(str(tmp_path / "small"), dtype="float32")


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(source, tmp_path, tokens, monkeypatch):
    save = streaming.save_file

    def full(state: dict, file: Path, metadata: dict) -> None:
        if "layer-001" in file.name:
            raise OSError(28, "No space left on device")
        save(state, file, metadata)

    with monkeypatch.context() as patch, pytest.raises(ModegptError, match=r"layer 1 cannot .*No space left"):
        patch.setattr(streaming, "save_file", full)
        run(source, tmp_path / "small", tokens)
    assert [file.name for file in (tmp_path / ".small.unfinished").glob("layer-*")] == ["layer-000.safetensors"]
    run(source, tmp_path / "small", tokens)
    report = json.loads((tmp_path / "small" / "modegpt_report.json").read_text())
    assert report["settings"]["layers_done_before"] == 1


def test_a_disk_too_small_is_refused_before_the_first_layer(source, tmp_path, tokens, monkeypatch):
    """With the bytes of the result, to within what ranks are rounded to, less the layers that lie there already."""
    run(source, tmp_path / "whole", tokens)
    size = sum(tensor.nbytes for tensor in weights(tmp_path / "whole").values())
    usage = shutil.disk_usage(tmp_path)

    def refused(free: int) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
            patch.setattr("modegpt.streaming.compress", None)  # no layer is read
            with pytest.raises(ModegptError, match=rf"{tmp_path} is too small: .* {free:,} bytes .* free$") as caught:
                run(source, tmp_path / "small", tokens)
        return int(re.search(r"about ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))

    assert refused(1234) == pytest.approx(size, rel=0.05)
    assert not (tmp_path / ".small.unfinished").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_one_layer(patch)
        run(source, tmp_path / "small", tokens)
    held = (tmp_path / ".small.unfinished" / "layer-000.safetensors").stat().st_size
    assert refused(1234) == pytest.approx(size - held, rel=0.05)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.05 * (size - held))))
    run(source, tmp_path / "small", tokens)


def test_layers_are_written_behind_the_work_and_one_at_most_waits(source, tmp_path, tokens, monkeypatch):
    save, events = streaming.save_file, []

    def slow(state: dict, file: Path, metadata: dict) -> None:
        time.sleep(0.3)
        save(state, file, metadata)
        events.append("written")

    def add(writer: LayerWriter, *layer: object) -> None:
        before(writer, *layer)
        events.append("taken over")

    before = LayerWriter.add
    monkeypatch.setattr(streaming, "save_file", slow)
    monkeypatch.setattr(LayerWriter, "add", add)
    report = run(source, tmp_path / "small", tokens)
    assert events == ["taken over", *["written", "taken over"] * 2, "written"]
    assert len(list((tmp_path / "small").glob("*.safetensors"))) == 4
    (found,) = report.streamed
    layers = [file for file in (tmp_path / "small").glob("*.safetensors") if "00001-of" not in file.name]
    assert found["bytes_written"] == sum(file.stat().st_size for file in layers)
    stored = [tensor for name, tensor in weights(source).items() if ".layers." in name]
    assert found["bytes_read"] > 2 * sum(tensor.nbytes for tensor in stored)  # two walks, and the rest once
    assert report.seconds["save"] > 0.3 and found["waited"] > 0


def test_tensors_that_the_architecture_does_not_know_are_refused(tiny_llama, tmp_path, tokens):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    save_file(load_file(file) | {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}, file, {"format": "pt"})
    with pytest.raises(ModegptError, match=r"hold 1 tensors that its architecture does not use.*q_proj.bias"):
        run(tmp_path / "source", tmp_path / "small", tokens)


def test_the_generation_config_stays(tiny_llama, tmp_path, tokens):
    model = tiny_llama()
    model.generation_config.eos_token_id = [5, 6]
    model.save_pretrained(tmp_path / "source")
    run(tmp_path / "source", tmp_path / "small", tokens)
    assert load_model(str(tmp_path / "small"))[0].generation_config.eos_token_id == [5, 6]


def test_a_damaged_file_is_one_line(source, tmp_path, tokens):
    file = next(iter(sorted(source.glob("*.safetensors"))))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModegptError, match="corrupt or cut short"):
        run(source, tmp_path / "small", tokens)


def test_the_same_run_writes_the_same_bytes(source, tmp_path, tokens):
    for name in ("one", "two"):
        run(source, tmp_path / name, tokens)
    found, wanted = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == ["modegpt_report.json"]  # its seconds


def test_an_unfinished_folder_that_is_not_ours_stays(source, tmp_path, tokens):
    mine = tmp_path / ".small.unfinished"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    with pytest.raises(ModegptError, match=r"small.unfinished is in the way: it holds thesis.tex"):
        run(source, tmp_path / "small", tokens)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"] and not (tmp_path / "small").exists()


def test_two_runs_do_not_write_the_same_unfinished_folder(source, tmp_path, tokens, monkeypatch):
    add, said = LayerWriter.add, []

    def second(*layer: object) -> None:
        if not said:
            with pytest.raises(ModegptError, match="another run is writing") as caught:
                run(source, tmp_path / "small", tokens)
            said.append(str(caught.value))
        add(*layer)

    monkeypatch.setattr(LayerWriter, "add", second)
    run(source, tmp_path / "small", tokens)
    assert len(said) == 1
    load_model(str(tmp_path / "small"), dtype="float32")


def test_bad_input(source, tmp_path, tokens):
    with pytest.raises(ModegptError, match="dense inputs only"):
        run(source, tmp_path / "small", tokens, inputs="compressed")
    shutil.copytree(source, tmp_path / "cut")
    index = tmp_path / "cut" / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    name = next(name for name in entries["weight_map"] if ".1." in name)
    del entries["weight_map"][name]
    index.write_text(json.dumps(entries))
    with pytest.raises(ModegptError, match=f"lack 1 tensors, the first is {name}"):
        run(tmp_path / "cut", tmp_path / "small", tokens)
    for file in (tmp_path / "cut").glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(ModegptError, match="streaming reads safetensors"):
        run(tmp_path / "cut", tmp_path / "other", tokens)


def test_lack_of_gpu_memory_says_what_would_fit(source, tokens):
    ways = []
    with (
        pytest.raises(ModegptError, match="out of GPU memory") as raised,
        advice_on_memory(str(source), CPU, torch.float32, tokens, 4),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    for part in str(raised.value).split("GiB needed ")[1].split("; "):
        way, gib = part.rsplit(": about ", 1)
        ways.append(way)
        assert float(gib) >= 0
    assert ways[0] == "as asked, --batch-size 4" and ways[-1] == "--stream --offload-hidden --batch-size 1"


@pytest.mark.slow
def test_the_command_killed_and_repeated_gives_the_same_weights(
    dense_folder, tmp_path, text_file, start_modegpt, modegpt
):
    def arguments(name: str) -> list[object]:
        options = ["--samples", 60, "--seq-len", 128, "--calibration", text_file, "--batch-size", 1, "--stream"]
        return ["compress", dense_folder, "--ratio", 0.3, "--out", tmp_path / name, *options, "--device", "cpu"]

    killed = start_modegpt(*arguments("small"))
    first = tmp_path / ".small.unfinished" / "layer-000.safetensors"
    deadline = time.monotonic() + 60
    while not first.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert first.exists() and not (tmp_path / "small").exists()
    for name in ("small", "whole"):
        ended = modegpt(*arguments(name))
        assert ended.code == 0, ended.err
    found, wanted = weights(tmp_path / "small"), weights(tmp_path / "whole")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_streaming_options_that_do_not_go_together(modegpt, dense_folder, tmp_path):
    command = ["compress", dense_folder, "--ratio", 0.3, "--out", tmp_path / "small"]
    assert "--offload-hidden goes with --stream" in modegpt(*command, "--offload-hidden").err
    assert "only modegpt streams" in modegpt(*command, "--stream", "--method", "svd").err
