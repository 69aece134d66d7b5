"""Calibration against what the stock forward pass itself computes, one unpadded sequence at a time."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from modegpt.calibrate import _cosines, block_influence, collect, tapped, walk
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.gram import whole
from modegpt.layer_statistics import LayerStatistics, PackedStatistics

LAYERS, HEADS, KV_HEADS, HEAD_DIM, CHANNELS, VOCABULARY = 3, 4, 2, 8, 20, 31
GRAMS = ("mlp", "query", "key", "value")
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    """Grouped heads, a head dim of its own, Llama-3 rope scaling, and weights large enough for sharp attention."""
    torch.manual_seed(0)
    options = {
        "hidden_size": 12,
        "intermediate_size": CHANNELS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.4,
        "rope_parameters": LLAMA_3,
    }
    return LlamaForCausalLM(LlamaConfig(**(options | changes))).double().eval()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(0))


def statistics(model: LlamaForCausalLM, tokens: object, **options: object) -> list[LayerStatistics]:
    return [found for _, found in walk(model, family_of(model), tokens, product_dtype=torch.float64, **options)]


@pytest.fixture
def explicit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[LayerStatistics]]:
    """The same statistics from what attention, `down_proj` and the layers receive in stock forward passes."""

    def run(model: LlamaForCausalLM, *sequences: Tensor) -> list[LayerStatistics]:
        model = copy.deepcopy(model)
        model.set_attn_implementation("eager")
        seen: dict[str, list[list[Tensor]]] = {name: [[] for _ in model.model.layers] for name in (*GRAMS, "cosine")}
        attend = modeling_llama.eager_attention_forward

        def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object):
            for name, states in (("query", query), ("key", key), ("value", value)):
                seen[name][module.layer_idx].append(states[0])
            return attend(module, query, key, value, *args, **kwargs)

        for index, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, at=index: seen["mlp"][at].append(args[0][0]))
            layer.register_forward_hook(
                lambda _, args, out, at=index: seen["cosine"][at].append(torch.cosine_similarity(args[0], out, dim=-1))
            )
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(modeling_llama, "eager_attention_forward", spy)
            for sequence in sequences:
                model(sequence[None])

        found = []
        for index in range(len(model.model.layers)):
            rows = {name: torch.cat(seen[name][index], dim=-2) for name in GRAMS}
            rows["query"] = rows["query"].unflatten(0, (model.config.num_key_value_heads, -1))
            cosine = torch.cat(seen["cosine"][index], dim=-1).flatten()
            grams = {name: torch.einsum("...ti,...tj->...ij", r, r) / len(cosine) for name, r in rows.items()}
            found.append(LayerStatistics(len(cosine), 1 - cosine.mean().item(), **grams))
        return found

    return run


def assert_same(found: list[LayerStatistics], wanted: list[LayerStatistics], rtol: float = 1e-5) -> None:
    """Up to the float32 in which the stock model normalises, rotates and takes its softmax."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.tokens == b.tokens
        assert a.block_influence == pytest.approx(b.block_influence, abs=1e-6)
        for name in GRAMS:
            assert_close(getattr(a, name), getattr(b, name), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_statistics_equal_those_of_explicit_activations(model, ids, explicit, batch_size):
    found = statistics(model, ids, batch_size=batch_size)
    assert_same(found, explicit(model, *ids))
    assert found[0].tokens == ids.numel()
    assert found[0].mlp.shape == (CHANNELS, CHANNELS)
    assert found[0].query.shape == (KV_HEADS, HEADS // KV_HEADS, HEAD_DIM, HEAD_DIM)
    assert found[0].key.shape == found[0].value.shape == (KV_HEADS, HEAD_DIM, HEAD_DIM)
    assert {getattr(found[0], name).dtype for name in GRAMS} == {torch.float64}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"attn_implementation": "eager"},
        {"tie_word_embeddings": True},
    ],
    ids=["multi-head", "multi-query", "plain rope", "eager attention", "tied embeddings"],
)
def test_other_llamas_agree_too(ids, explicit, changes):
    model = tiny_llama(**changes)
    assert_same(statistics(model, ids), explicit(model, *ids))


def test_the_default_precision_of_the_products_agrees(model, ids, explicit):
    assert_same(collect(model, ids), explicit(model, *ids))


def test_rotation_and_scaling_matter_in_this_comparison(model, ids):
    """Else the tests above would prove nothing about them."""
    plain = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    plain.load_state_dict(model.state_dict())
    found, other = statistics(model, ids), statistics(plain, ids)
    assert (found[0].key - other[0].key).abs().max() > 0.1


@torch.no_grad()
def test_block_influence_is_that_of_the_hidden_states_before_the_final_norm(model, ids):
    model.model.norm.weight.data = torch.linspace(-1, 1, 12, dtype=torch.float64)
    hidden = model(ids, output_hidden_states=True).hidden_states
    wanted = [1 - torch.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairwise(hidden)]
    found = [s.block_influence for s in statistics(model, ids)]
    assert found[:-1] == pytest.approx(wanted[:-1], abs=1e-6)
    assert abs(found[-1] - wanted[-1]) > 0.1  # Hugging Face's last hidden state has been normed


def test_block_influence_alone_equals_the_full_walk_and_gathers_nothing(model, ids, monkeypatch):
    wanted = [s.block_influence for s in collect(model, ids)]
    monkeypatch.setattr("modegpt.calibrate.GramSum", None)
    scores = block_influence(model, family_of(model), ids)
    assert scores.dtype == torch.float64
    assert scores.tolist() == wanted
    for _, found in walk(model, family_of(model), ids, grams=False):
        assert [getattr(found, name) for name in GRAMS] == [None] * 4


def padded(sequences: list[Tensor], side: str) -> dict[str, Tensor]:
    length = max(map(len, sequences))
    rows = {"input_ids": sequences, "attention_mask": [torch.ones_like(s) for s in sequences]}
    pad = (lambda n: (n, 0)) if side == "left" else (lambda n: (0, n))
    return {
        name: torch.stack([nn.functional.pad(row, pad(length - len(row)), value=0) for row in batch])
        for name, batch in rows.items()
    }


@pytest.fixture
def sequences(ids) -> list[Tensor]:
    return [row[:length] for row, length in zip(ids, (3, 7, 1, 5, 6), strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(model, sequences, explicit, side, batch_size):
    found = statistics(model, padded(sequences, side), batch_size=batch_size)
    assert_same(found, explicit(model, *sequences))
    assert found[0].tokens == 22


def test_a_sample_that_is_all_padding_counts_nowhere(model, ids, explicit):
    mask = torch.ones_like(ids)
    mask[2] = 0
    for batch_size in (1, 5):
        found = statistics(model, {"input_ids": ids, "attention_mask": mask}, batch_size=batch_size)
        assert_same(found, explicit(model, *ids[[0, 1, 3, 4]]))


def test_input_ids_without_a_mask_are_all_real(model, ids):
    assert_same(statistics(model, {"input_ids": ids}), statistics(model, ids), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_are_squared_in_float32(ids, dtype):
    model = tiny_llama().to(dtype)
    model.model.layers[1].mlp.up_proj.weight.data *= 1000
    model.model.layers[1].mlp.down_proj.weight.data /= 1000
    seen = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    rows = seen[0].flatten(0, 1).double()
    assert rows.abs().max() ** 2 > 65504
    found = collect(model, ids, batch_size=len(ids))[1]
    assert_close(found.mlp, rows.T @ rows / ids.numel(), rtol=1e-5, atol=1e-5 * rows.square().mean().item())
    assert found.key.isfinite().all() and found.query.isfinite().all()


def replace_first_layer(model: LlamaForCausalLM) -> None:
    """Something else in its place, of another MLP size."""
    small = copy.deepcopy(model.model.layers[0])
    small.self_attn.config = model.config
    for name in ("gate_proj", "up_proj"):
        getattr(small.mlp, name).weight.data = getattr(small.mlp, name).weight[:4].detach()
    small.mlp.down_proj.weight.data = -small.mlp.down_proj.weight[:, :4].detach()
    model.model.layers[0] = small


@pytest.mark.parametrize("inputs", ["dense", "compressed"])
def test_the_next_layer_sees_the_replaced_one_only_if_asked_to(model, ids, explicit, inputs):
    dense, replaced = explicit(model, *ids), copy.deepcopy(model)
    replace_first_layer(replaced)
    compressed = explicit(replaced, *ids)
    found = []
    for index, seen in walk(model, family_of(model), ids, inputs=inputs, batch_size=2, product_dtype=torch.float64):
        found.append(seen)
        if index == 0:
            replace_first_layer(model)
    assert_same(found, [dense[0], *(dense if inputs == "dense" else compressed)[1:]])
    assert (dense[1].mlp - compressed[1].mlp).abs().max() > 1e-2


def test_compressed_inputs_are_dense_ones_while_nothing_is_replaced(model, sequences):
    tokens = padded(sequences, "left")
    found = statistics(model, tokens, inputs="compressed", batch_size=2)
    assert_same(found, statistics(model, tokens, batch_size=2), rtol=1e-12)


def test_an_unknown_kind_of_inputs_is_refused(model, ids):
    with pytest.raises(ModegptError, match="inputs is dense or compressed, got 'compresed'"):
        statistics(model, ids, inputs="compresed")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_bad_weights_name_their_layer(model, ids, layer, bad):
    model.model.layers[layer].self_attn.v_proj.weight.data[1, 2] = bad
    with pytest.raises(ModegptError, match=f"layer {layer}: its weights hold NaN or inf"):
        collect(model, ids)
    with pytest.raises(ModegptError, match=f"layer {layer}: its weights"):
        block_influence(model, family_of(model), ids)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_overflowing_activations_name_their_layer(ids, layer):
    model = tiny_llama().half()
    model.model.layers[layer].mlp.down_proj.weight.data[:] = 65504
    done = []
    with pytest.raises(ModegptError, match=f"layer {layer}: its activations hold NaN or inf"):
        done.extend(index for index, _ in walk(model, family_of(model), ids))
    assert done == list(range(layer))


def test_overflowing_squares_name_their_layer(ids):
    """The layer's output stays finite."""
    model = tiny_llama().float()
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight.data *= 1e22
    attention.q_proj.weight.data *= 1e-22
    with pytest.raises(ModegptError, match="layer 1: its activations are too large to be squared"):
        collect(model, ids)


def test_padding_may_hold_anything(model, sequences, explicit):
    """An embedding that only padding uses is no reason to stop, and not to be counted."""
    unused = next(token for token in range(1, VOCABULARY) if all(token not in s for s in sequences))
    tokens = padded(sequences, "right")
    tokens["input_ids"][tokens["attention_mask"] == 0] = unused
    model.model.embed_tokens.weight.data[unused] = 1e30
    assert_same(statistics(model, tokens), explicit(model, *sequences))


def test_live_gram_matrices_do_not_grow_with_the_layers(ids):
    def most_alive(layers: int) -> int:
        model, counts = tiny_llama(num_hidden_layers=layers, intermediate_size=23), []

        def count(*_: object) -> None:
            squares = (o for o in gc.get_objects() if type(o) is Tensor and o.shape == (23, 23))
            counts.append(sum(1 for _ in squares))

        model.model.layers[-1].mlp.down_proj.register_forward_hook(count)  # in the middle of the last layer's work
        for _ in walk(model, family_of(model), ids):
            pass
        count()
        return max(counts)

    gc.collect()
    assert 1 <= most_alive(2) == most_alive(6) <= 3


def test_statistics_do_not_live_through_the_next_layer(model, ids):
    """On a large model they are gigabytes that its work needs."""
    given, alive = [], []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda *_: alive.append(sum(ref() is not None for ref in given)))
    walking = walk(model, family_of(model), ids)
    while item := next(walking, None):
        given.append(weakref.ref(item[1].mlp))
        del item
    assert len(given) == LAYERS and set(alive) == {0}


def test_collect_equals_walk(model, ids):
    walked = list(walk(model, family_of(model), ids, batch_size=2))
    assert [index for index, _ in walked] == list(range(LAYERS))
    assert_same(collect(model, ids, batch_size=2), [found for _, found in walked], rtol=0)


def test_what_was_collected_can_be_walked_again(model, ids):
    collected = collect(model, ids)
    assert list(walk(model, family_of(model), collected)) == list(enumerate(collected))
    assert torch.equal(
        block_influence(model, family_of(model), collected), block_influence(model, family_of(model), ids)
    )


def test_the_model_is_left_as_it_was(model, ids):
    before = copy.deepcopy(model.state_dict())
    for _ in walk(model, family_of(model), ids):
        assert torch.is_grad_enabled()
        break  # a walk that is abandoned, too
    found = collect(model, ids)
    assert not any(getattr(found[0], name).requires_grad for name in GRAMS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "tokens",
    [
        torch.ones(7, dtype=torch.int64),
        torch.ones(1, 2, 7, dtype=torch.int64),
        torch.ones(0, dtype=torch.int64),
        torch.ones(0, 7, dtype=torch.int64),
        torch.ones(2, 0, dtype=torch.int64),
        {"input_ids": torch.ones(2, 7, dtype=torch.int64), "attention_mask": torch.zeros(2, 7, dtype=torch.int64)},
        {"input_ids": torch.ones(2, 7, dtype=torch.int64), "attention_mask": torch.ones(2, 6, dtype=torch.int64)},
    ],
    ids=["1-d", "3-d", "empty 1-d", "no samples", "no tokens", "all masked", "mask of another shape"],
)
def test_tokens_that_are_no_batch_are_refused(model, tokens):
    with pytest.raises(ModegptError, match="non-empty"):
        collect(model, tokens)


@pytest.fixture
def cuda_model(model) -> Iterator[LlamaForCausalLM]:
    yield model.cuda()
    torch.cuda.empty_cache()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("inputs", ["dense", "compressed"])
def test_cuda_agrees_with_the_cpu(cuda_model, sequences, inputs):
    tokens = padded(sequences, "right")
    found = statistics(cuda_model, tokens, inputs=inputs)
    assert {getattr(s, name).device.type for s in found for name in GRAMS} == {"cuda"}
    for s in found:
        for name in GRAMS:
            setattr(s, name, getattr(s, name).cpu())
    assert_same(found, statistics(copy.deepcopy(cuda_model).cpu(), tokens, inputs=inputs))


def test_every_attention_function_is_listened_to_and_given_back(model, ids):
    functions = modeling_llama.ALL_ATTENTION_FUNCTIONS
    before, expected = dict(functions), statistics(model, ids)
    calls = []

    def own(*args: object, **kwargs: object):
        calls.append(args)
        return before["sdpa"](*args, **kwargs)

    model.set_attn_implementation("eager")
    for found, wanted in zip(statistics(model, ids), expected, strict=True):
        for name in GRAMS:
            assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)  # softmax in float32
    assert dict(functions) == before
    model.set_attn_implementation("sdpa")
    functions["sdpa"] = own
    try:
        with pytest.raises(RuntimeError, match="stop"), tapped(family_of(model).taps(model.model.layers[0])) as seen:
            model(ids)
            raise RuntimeError("stop")
        assert functions["sdpa"] is own and len(calls) == LAYERS and {"query", "key", "value"} < seen.keys()
    finally:
        del functions["sdpa"]


def test_a_tap_sees_its_own_module_only_so_threads_may_calibrate_side_by_side(model, ids):
    first, other = model.model.layers[0], copy.deepcopy(model)
    with tapped({"heads": (first.self_attn, "heads")}) as seen:
        with tapped({"heads": (other.model.layers[0].self_attn, "heads")}) as seen_there:
            other(ids[:1])
        assert len(seen_there["query"]) == 1 and not seen
        other(ids[:1])
        assert not seen
        model(ids)
        other(ids[:1])
    assert len(seen["query"]) == len(ids) and first.self_attn.config is model.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0])
def test_cosines_are_those_of_torch_for_short_rows_too(dtype, scale):
    torch.manual_seed(0)
    left, right = (scale * torch.randn(2, 5, 16, dtype=torch.float64)).to(dtype)
    wanted = torch.cosine_similarity(left.double(), right.double(), dim=-1)
    assert_close(_cosines(left, right).double(), wanted, rtol=0, atol=1e-15 if dtype == torch.float64 else 1e-6)


def test_packed_statistics_of_a_layer_are_gone_before_the_next_are_unpacked(model, ids, monkeypatch):
    packed = PackedStatistics(torch.float64, torch.device("cpu"))
    for entry in collect(model, ids):
        packed.append(entry)
    found: list[weakref.ref] = []

    def unpacked(blocks: list[Tensor]) -> Tensor:
        assert not any(gram() is not None for gram in found)
        return whole(blocks)

    monkeypatch.setattr("modegpt.layer_statistics.whole", unpacked)
    for _, entry in walk(model, family_of(model), packed):
        found.append(weakref.ref(entry.mlp))
        del entry
    assert len(found) == LAYERS
