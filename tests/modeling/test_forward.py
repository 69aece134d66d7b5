import ast
import inspect

import pytest
import torch
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM, modeling_modegpt_llama

GREEDY = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}


def padded_to_stock(small: ModeGPTLlamaForCausalLM) -> LlamaForCausalLM:
    """A stock Llama that computes the same: zeros where dims and channels were dropped."""
    config = small.config.to_dict()
    for name in ("query_key_ranks", "value_ranks", "mlp_ranks", "model_type", "architectures"):
        config.pop(name)
    stock = LlamaForCausalLM(LlamaConfig(**config)).eval()
    d, group = stock.config.head_dim, stock.config.num_attention_heads // stock.config.num_key_value_heads
    width = stock.config.hidden_size
    with torch.no_grad():
        for ours, theirs in zip(small.model.layers, stock.model.layers, strict=True):
            for parameter in (*theirs.self_attn.parameters(), *theirs.mlp.parameters()):
                parameter.zero_()
            dims = ours.self_attn.rotary_index
            for h in range(len(dims) * group):
                kept, rank = dims[h // group], len(dims[0])
                theirs.self_attn.q_proj.weight[h * d + kept] = ours.self_attn.q_proj.weight.view(-1, rank, width)[h]
            value_rank = ours.self_attn.v_proj.out_features // len(dims)
            for h in range(len(dims)):
                theirs.self_attn.k_proj.weight[h * d + dims[h]] = ours.self_attn.k_proj.weight.view(
                    -1, len(dims[0]), width
                )[h]
                theirs.self_attn.v_proj.weight[h * d : h * d + value_rank] = ours.self_attn.v_proj.weight.view(
                    -1, value_rank, width
                )[h]
            for h in range(len(dims) * group):
                theirs.self_attn.o_proj.weight[:, h * d : h * d + value_rank] = ours.self_attn.o_proj.weight.view(
                    width, -1, value_rank
                )[:, h]
            channels = ours.mlp.up_proj.out_features
            theirs.mlp.up_proj.weight[:channels] = ours.mlp.up_proj.weight
            theirs.mlp.gate_proj.weight[:channels] = ours.mlp.gate_proj.weight
            theirs.mlp.down_proj.weight[:, :channels] = ours.mlp.down_proj.weight
            for norm in ("input_layernorm", "post_attention_layernorm"):
                getattr(theirs, norm).weight.copy_(getattr(ours, norm).weight)
        stock.model.embed_tokens.weight.copy_(small.model.embed_tokens.weight)
        stock.model.norm.weight.copy_(small.model.norm.weight)
        stock.lm_head.weight.copy_(small.lm_head.weight)
    return stock


@torch.no_grad()
def test_zero_padded_to_a_stock_llama_it_gives_the_same_logits(small, tokens):
    torch.testing.assert_close(padded_to_stock(small)(tokens).logits, small(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_softmax_scale_is_that_of_the_original_head(small):
    assert min(small.config.query_key_ranks) < small.config.head_dim
    for layer in small.model.layers:
        assert layer.self_attn.scaling == small.config.head_dim**-0.5


@torch.no_grad()
def test_eager_and_sdpa_agree_and_attentions_can_be_read(small, tokens):
    by_sdpa = small(tokens).logits
    small.set_attn_implementation("eager")
    result = small(tokens, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(result.logits, by_sdpa, rtol=1e-4, atol=1e-4)
    assert len(result.attentions) == 3 and result.attentions[0].shape == (6, 4, 40, 40)
    assert len(result.hidden_states) == 4


@torch.no_grad()
def test_flash_kernels_get_one_head_dim_for_queries_keys_and_values(small, tokens):
    seen = []

    def flash(module, query, key, value, *args, **kwargs):
        seen.append((query.shape[-1], key.shape[-1], value.shape[-1]))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    expected = small(tokens).logits
    AttentionInterface.register("flash_like", flash)
    small.config._attn_implementation = "flash_like"
    torch.testing.assert_close(small(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert seen and all(q == k == v for q, k, v in seen)


@torch.no_grad()
def test_greedy_text_is_the_same_with_and_without_cache(small, tokens):
    cached = small.generate(tokens[:2, :7], **GREEDY)
    assert torch.equal(cached, small.generate(tokens[:2, :7], **GREEDY, use_cache=False))
    assert torch.equal(cached, small.generate(tokens[:2, :7], **GREEDY, cache_implementation="static"))


@torch.no_grad()
def test_left_padded_batch_generates_what_each_prompt_does_alone(small, tokens):
    prompts = [tokens[0, :5], tokens[1, :11]]
    ids = torch.stack([torch.nn.functional.pad(p, (11 - len(p), 0)) for p in prompts])
    together = small.generate(ids, attention_mask=(ids != 0).long(), **GREEDY)
    for prompt, row in zip(prompts, together, strict=True):
        alone = small.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), **GREEDY)
        assert torch.equal(alone[0, len(prompt) :], row[11:])


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_model(small, tokens, tmp_path):
    small.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is ModeGPTLlamaForCausalLM
    assert torch.equal(loaded(tokens).logits, small(tokens).logits)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["model.layers.1.self_attn.rotary_index"], small.model.layers[1].self_attn.rotary_index)
    assert ("lm_head.weight" in saved) != small.config.tie_word_embeddings


@torch.no_grad()
def test_sharded_and_half_precision_checkpoints_load(small, tokens, tmp_path):
    small.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.layers[0].self_attn.rotary_index.dtype == torch.int64
    assert torch.isfinite(loaded(tokens).logits).all()


def test_no_stale_size_remains(small):
    for index, layer in enumerate(small.model.layers):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
        assert layer.mlp.intermediate_size == small.config.mlp_ranks[index] == layer.mlp.up_proj.out_features


def test_one_training_step_lowers_the_loss(small, tokens):
    small.train().requires_grad_(True)
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-2)
    before = small(tokens, labels=tokens).loss
    before.backward()
    optimizer.step()
    assert small(tokens, labels=tokens).loss < before


def test_file_travels_alone():
    tree = ast.parse(inspect.getsource(modeling_modegpt_llama))
    imports = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in getattr(node, "names", [])]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imports == {"torch", "transformers"}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


@pytest.mark.parametrize("name", ["query_key_ranks", "value_ranks", "mlp_ranks"])
def test_config_without_its_ranks_is_refused_by_name(name):
    ranks = {"query_key_ranks": [4, 4], "value_ranks": [4, 4], "mlp_ranks": [8, 8]}
    tiny = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    for wrong in (None, [4]):
        with pytest.raises(ValueError, match=name):
            ModeGPTLlamaForCausalLM(ModeGPTLlamaConfig(**tiny, **ranks | {name: wrong}))
