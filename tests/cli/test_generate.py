"""`modegpt generate` as a user types it, on a tiny random model."""

import pytest
import torch
from transformers import LlamaForCausalLM

from modegpt.sources import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_generated_text_is_the_same_with_and_without_cache(strict_json, modegpt, run, tmp_path):
    prompt, file = "Nutelo lisa", tmp_path / "generate.json"
    common = ["generate", run.folder, prompt, "--max-new-tokens", 24, "--dtype", "float32"]
    with_cache, without = modegpt(*common, "--cache", "--json", file), modegpt(*common, "--no-cache")
    assert with_cache == without
    assert with_cache.code == 0 and with_cache.err == ""
    result = strict_json(file)
    assert with_cache.out == result["text"] + "\n"
    assert result["text"].startswith(prompt) and len(result["text"]) > len(prompt)
    assert (result["prompt"], result["new_tokens"]) == (prompt, 24)
    assert {"seed", "device", "versions", "command"} <= set(result)


@pytest.mark.parametrize(("flag", "used"), [("--cache", True), ("--no-cache", False)])
def test_cache_is_used_as_asked(modegpt, dense_folder, monkeypatch, flag, used):
    lengths, forward = [], LlamaForCausalLM.forward

    def watch(self, input_ids, **options):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watch)
    assert modegpt("generate", dense_folder, "Nutelo", "--max-new-tokens", 4, flag).code == 0
    assert lengths[1:] == ([1, 1, 1] if used else [lengths[0] + step for step in (1, 2, 3)])


def test_generation_is_greedy(modegpt, dense_folder):
    model, tokenizer = load_model(str(dense_folder), dtype="float32")
    ids = tokenizer("Nutelo", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    printed = modegpt("generate", dense_folder, "Nutelo", "--max-new-tokens", 12, "--dtype", "float32")
    assert printed.out == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"


def test_user_text_is_printed_as_it_is(modegpt, dense_folder):
    prompt = "[bold]a[/b]\t:heart: [/x]"
    assert modegpt("generate", dense_folder, prompt, "--max-new-tokens", 1).out.startswith(prompt)
