"""What every family and every dialect must pass: subclass `Contract`, and say how a tiny one is built.

Weights are random and large enough that a wrong head, scale, bias, window or rotation shows in the logits.
"""

import copy
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from modegpt import compress, load_model
from modegpt.checkpoint.export import stock_model
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.methods import METHODS
from modegpt.streaming import compress_folder

MODULES = ("query_key", "value", "mlp")
CPU = torch.device("cpu")
FACTS = {"model": "tiny", "calibration": "noise", "samples": 6, "seq_len": 40, "seed": 0, "dtype": "float32"}
FACTS |= {"versions": {}, "command": "none", "device": "cpu"}


SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 128}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
SIZES |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def tiny(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of that config with random weights, biases and norms."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            stock = parameter.mean().item() if name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=stock, std=0.3)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(tokens).logits


def far(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.usefixtures("one_thread")
class Contract:
    """Give `variants` and the fixture `build`, which makes a dense model with some config entries changed."""

    variants: ClassVar[dict[str, dict]] = {}
    refused: ClassVar[dict[str, tuple[str, ...]]] = {}  # method -> the variants that it refuses by name
    stock: ClassVar[type[PreTrainedModel]]  # what it is exported as
    unexported: ClassVar[tuple[float, ...]] = ()  # the ratios at which it is refused by name instead
    rounding: ClassVar[float] = 1e-9  # in float64; stock norms are computed in float32

    def __init_subclass__(cls) -> None:
        if cls.variants:
            pytest.mark.parametrize("variant", cls.variants)(cls)

    @pytest.fixture
    def dense(self, build, variant):
        return build(**self.variants[variant])

    @pytest.mark.parametrize("modules", [MODULES, *((module,) for module in MODULES)], ids="+".join)
    def test_ratio_zero_is_the_identity(self, dense, tokens, modules):
        expected = logits(dense.double(), tokens)
        small, report = compress(dense, tokens, ratio=0.0, modules=modules)
        assert report.block_ratio == 0
        assert far(logits(small, tokens), expected) < self.rounding

    def test_ratio_zero_is_the_identity_streamed_reloaded_and_exported(self, dense, tokens, tmp_path):
        dense.save_pretrained(tmp_path / "dense")
        expected = logits(dense, tokens)
        for ratio in (0.0, 0.3):
            options = {"ratio": ratio, "multiple_of": 2, "device": CPU, "dtype": torch.float32, "facts": FACTS}
            compress_folder(tmp_path / "dense", tmp_path / f"small-{ratio}", tokens, None, **options)
        reloaded, _ = load_model(str(tmp_path / "small-0.0"), dtype="float32")
        assert far(logits(reloaded, tokens), expected) < 1e-5
        card = (tmp_path / "small-0.0" / "README.md").read_text()
        origin = getattr(reloaded.config, "rewritten_from", None)
        assert (f"Architecture of the source: {dense.config.model_type}, rewritten as" in card) == (origin is not None)
        streamed, _ = load_model(str(tmp_path / "small-0.3"), dtype="float32")
        small, _ = compress(load_model(str(tmp_path / "dense"), dtype="float32")[0], tokens, ratio=0.3, multiple_of=2)
        assert far(logits(streamed, tokens), logits(small, tokens)) < 1e-5
        for ratio, model in ((0.0, reloaded), (0.3, streamed)):
            if ratio in self.unexported:
                with pytest.raises(ModegptError, match="no plain form"):
                    stock_model(model)
                continue
            exported, _ = stock_model(model)
            exported.save_pretrained(tmp_path / "stock")
            again, _ = load_model(str(tmp_path / "stock"), dtype="float32")
            assert type(exported) is self.stock
            assert far(logits(again, tokens), logits(model, tokens)) < 1e-5

    def test_thirty_percent_agrees_with_float64_and_with_any_cache(self, dense, tokens):
        expected = logits(dense, tokens)
        options = {"ratio": 0.3, "multiple_of": 2, "allocation": "uniform"}
        exact, _ = compress(copy.deepcopy(dense).double(), tokens, gram_dtype=torch.float64, **options)
        small, report = compress(dense, tokens, **options)
        assert report.block_ratio == pytest.approx(0.3, abs=0.02)
        assert far(logits(small, tokens), logits(exact, tokens).float()) < 1e-3
        assert far(logits(small, tokens), expected) > 1e-2
        greedy = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        cached = exact.generate(tokens[:2, :7], **greedy)
        for other in ({"use_cache": False}, {"cache_implementation": "static"}):
            assert torch.equal(cached, exact.generate(tokens[:2, :7], **greedy, **other))
        if hasattr(exact, "fuse"):
            assert torch.equal(cached, exact.fuse().generate(tokens[:2, :7], **greedy))
            assert far(logits(small.fuse(), tokens), logits(exact, tokens).float()) < 1e-3

    def test_every_method_runs_or_is_refused_by_name(self, dense, variant, tokens, tmp_path):
        dense.save_pretrained(tmp_path / "dense")
        expected, (model, _) = logits(dense, tokens), load_model(str(tmp_path / "dense"), dtype="float32")
        before = sum(weight.numel() for weight in family_of(model).layers(model).parameters())
        enough = tokens.repeat(2, 1)
        for name in METHODS.keys() - {"modegpt", "fwsvd-shifted"}:
            method = METHODS[name]
            if variant in self.refused.get(name, ()):
                with pytest.raises(ModegptError, match=r"SliceGPT|low-rank|correction"):
                    method.measure(model, None)  # refused before a token is looked at
                continue
            measured = method.measure(model, enough)
            same, report = method.compress(copy.deepcopy(model), measured, 0.0)
            assert report.block_ratio == 0, name
            assert far(logits(same, tokens), expected) < 1e-5, name
            small, _ = method.compress(copy.deepcopy(model), measured, 0.4)
            small.save_pretrained(tmp_path / name)
            reloaded, _ = load_model(str(tmp_path / name), dtype="float32")
            assert sum(weight.numel() for weight in reloaded.get_decoder().layers.parameters()) < 0.8 * before, name
            assert far(logits(reloaded, tokens), logits(small, tokens)) < 1e-5, name


class NormedContract(Contract):
    """For families with norms of queries and keys."""

    def test_one_number_makes_up_for_the_norm_of_fewer_dims(self, dense, tokens, monkeypatch):
        """Half of the rotary pairs are small: without a number for them the norm makes the rest too small."""
        shape = family_of(dense).shape(dense)
        small_pairs = torch.arange(shape.query_key) % 2 == 1  # d/2 is even, so both dims of a pair
        for layer in dense.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                linear.weight.data.view(-1, shape.query_key, 48)[:, small_pairs] *= 0.2
        expected = logits(dense, tokens)
        half = {"ratio": shape.query_key_cost * shape.query_key / 2 / shape.total, "allocation": "uniform"}
        half |= {"modules": ("query_key",), "multiple_of": 2}
        folded, _ = compress(copy.deepcopy(dense), tokens, **half)
        monkeypatch.setattr("modegpt.pipeline.kept_rms", lambda projected, *_: torch.ones(projected.shape[:-2]))
        plain, _ = compress(dense, tokens, **half)
        errors = [(logits(model, tokens) - expected).square().mean() for model in (folded, plain)]
        assert errors[0] < 0.7 * errors[1]
