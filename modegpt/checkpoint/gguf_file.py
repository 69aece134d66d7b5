"""A Llama as a GGUF file, which llama.cpp and the programs built on it run.

llama.cpp has two architectures for a Llama's layers. `llama` has one MLP width for all, `deci` one for each layer, so a
compression that left the heads whole needs no padding in either. Tokens are split by rules that llama.cpp has built in
and knows by name only; a tokenizer with other rules is refused, since it would read other tokens in silence.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modegpt.checkpoint.export import stock_model
from modegpt.errors import ModegptError
from modegpt.families import base_family
from modegpt.files import beside
from modegpt.modeling import COMPRESSED

TYPES = {"f32": Kind.F32, "f16": Kind.F16, "q8_0": Kind.Q8_0}
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
FILE_TYPES["q8_0"] = gguf.LlamaFileType.MOSTLY_Q8_0
ROTARY = ("default", "linear", "llama3")  # scalings that do not depend on the length of the text

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> list[dict[str, Any]]:
    words = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [words, BYTES | {"use_regex": False}]


SPLITS = {  # llama.cpp's name -> the steps of the tokenizer that it stands for
    "gpt-2": [BYTES],
    "smollm": [DIGITS, BYTES],
    "llama-bpe": _split(LLAMA3),
    "qwen2": _split(QWEN2),
}


def check_shapes(config: PreTrainedConfig) -> None:
    """Raise ModegptError, with the option of `compress` that helps, if no GGUF architecture holds such layers."""
    kind = COMPRESSED.get(config.model_type, config.model_type)
    if kind != "llama":
        raise ModegptError(
            f"a GGUF file of modegpt's is a Llama, not a '{kind}': go by way of a plain model (compress --for stock, "
            "export --stock) and llama.cpp's own converter, if that knows it"
        )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type != kind and not hasattr(config, "mlp_ranks"):
        raise ModegptError(f"GGUF holds no '{config.model_type}': compress with --method modegpt --for gguf")
    ranks = (*getattr(config, "query_key_ranks", ()), *getattr(config, "value_ranks", ()))
    if short := [rank for rank in ranks if rank != head]:
        raise ModegptError(
            f"GGUF holds whole heads, and of {head} dims this one keeps {min(short)}: compress with --for gguf, or "
            "give --gguf the folder that --stock writes, where zeros pad the heads"
        )
    scaling = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if scaling not in ROTARY:
        raise ModegptError(f"rotary scaling '{scaling}' is not written to GGUF, only {', '.join(ROTARY)}: use --stock")


def check_rows(config: PreTrainedConfig, kind: str) -> None:
    """Raise ModegptError unless the rows of all matrices can be quantized; ``kind`` is one of `TYPES`."""
    block = gguf.GGML_QUANT_SIZES[TYPES[kind]][0]
    rows = {config.hidden_size, *(getattr(config, "mlp_ranks", None) or [config.intermediate_size])}
    if odd := sorted(row for row in rows if row % block):
        raise ModegptError(
            f"{kind} packs {block} weights of a row together, and a row here has {odd[0]}: "
            + ("use --type f16" if config.hidden_size % block else f"compress with --multiple-of {block}, or use f16")
        )


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """What GGUF says of a tokenizer, by the names of its fields behind "tokenizer.".

    Args:
        tokenizer: a fast one.
        size: rows of the embedding; entries that the tokenizer lacks are named and marked unused.

    Raises:
        ModegptError: llama.cpp would split text in another way.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        raise ModegptError(_unknown("it is not a fast one"))
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise ModegptError(_unknown(f"its model is {model['type']}"))
    entries = tokenizer.get_vocab()
    if max(entries.values()) >= size:
        raise ModegptError(f"the tokenizer has {len(entries)} entries and the model {size}: this pair does not fit")
    tokens, types = [f"[PAD{index}]" for index in range(size)], [gguf.TokenType.UNUSED] * size
    for token, index in entries.items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for index, token in tokenizer.added_tokens_decoder.items():
        types[index] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    fields: dict[str, Any] = {"ggml.tokens": tokens}
    if model["byte_fallback"]:
        fields |= _sentences(parts, tokens, types, merges)
    else:
        fields |= {"ggml.model": "gpt2", "ggml.pre": _split_name(parts), "ggml.merges": [" ".join(m) for m in merges]}
    fields["ggml.token_type"] = [int(kind) for kind in types]
    for role in ("bos", "eos", "pad", "unk"):
        if (index := getattr(tokenizer, f"{role}_token_id")) is not None:
            name = {"pad": "padding", "unk": "unknown"}.get(role, role)
            fields[f"ggml.{name}_token_id"] = index
    starts = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    ends = tokenizer("a").input_ids[-1:] == [tokenizer.eos_token_id]
    fields |= {"ggml.add_bos_token": starts, "ggml.add_eos_token": ends}
    if isinstance(tokenizer.chat_template, str):
        fields["chat_template"] = tokenizer.chat_template
    return fields


def _split_name(parts: dict[str, Any]) -> str:
    """llama.cpp's name for the rules by which a byte-level tokenizer splits text. Raises ModegptError for others."""
    step = parts["pre_tokenizer"] or {}
    steps = [
        {key: value for key, value in part.items() if key != "trim_offsets"}
        for part in step.get("pretokenizers", [step])
    ]
    normal = parts["normalizer"]
    for name, known in SPLITS.items():
        if steps == known and (normal is None or (name == "qwen2" and normal == {"type": "NFC"})):
            return name
    kinds = ", ".join(str(part.get("type")) for part in steps)
    raise ModegptError(_unknown(f"its rules for splitting text ({kinds}) are none of {', '.join(SPLITS)}"))


def _sentences(parts: dict[str, Any], tokens: list[str], types: list, merges: list[list[str]]) -> dict[str, Any]:
    """SentencePiece's BPE, Llama 2's: what merges first has the higher score."""
    words = json.dumps([parts["normalizer"], parts["pre_tokenizer"]], ensure_ascii=False)
    if "▁" not in words or not set(_kinds(json.loads(words))) <= {"Sequence", "Prepend", "Replace", "Metaspace"}:
        raise ModegptError(_unknown("its model falls back to bytes, but spaces are not ▁"))
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    for index, token in enumerate(tokens):
        if types[index] == gguf.TokenType.NORMAL and len(token) == 6 and token.startswith("<0x"):
            types[index] = gguf.TokenType.BYTE
    unknown = parts["model"]["unk_token"]
    if unknown in tokens:
        types[tokens.index(unknown)] = gguf.TokenType.UNKNOWN
    scores = [-float(ranks.get(token, len(merges))) for token in tokens]
    return {"ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores, "ggml.add_space_prefix": True}


def _kinds(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _kinds(value)
    if isinstance(node, dict) and isinstance(node.get("type"), str):
        yield node["type"]


def _unknown(why: str) -> str:
    return f"GGUF has no name for this tokenizer, {why}: export --stock and use llama.cpp's own converter"


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    file: Path,
    kind: Literal["f32", "f16", "q8_0"] = "f16",
    name: str = "",
    licence: str | None = None,
) -> str:
    """Write a Llama, dense or compressed with whole heads, as a GGUF file.

    Args:
        model: it stays as it is.
        tokenizer: None writes a file that takes token ids only.
        file: a half-written one never has this name.
        kind: of the matrices; vectors are always float32.
        name, licence: for the file's own description.

    Returns:
        The architecture: "llama", or "deci" where layers have MLPs of different widths.

    Raises:
        ModegptError: shapes or a tokenizer that GGUF cannot hold, weights too large for float16, a full disk.
    """
    check_shapes(model.config)
    check_rows(model.config, kind)
    words = vocabulary(tokenizer, model.config.vocab_size) if tokenizer is not None else {"ggml.model": "no_vocab"}
    plain = stock_model(model, one_width=False)[0] if model.config.model_type in COMPRESSED else model
    widths = [layer.mlp.down_proj.in_features for layer in base_family(plain.config).layers(plain)]
    arch = "llama" if len(set(widths)) == 1 else "deci"
    partial = beside(file.resolve(), "partial")
    try:
        writer = gguf.GGUFWriter(partial, arch)
        _describe(writer, plain.config, widths, kind, name, licence)
        for field, value in words.items():
            _add(writer, f"tokenizer.{field}", value)
        for tensor, data, stored in _tensors(plain, arch, TYPES[kind]):
            writer.add_tensor(tensor, data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, file.resolve())
    except OSError as error:
        raise ModegptError(f"cannot write {file}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return arch


def _describe(
    writer: gguf.GGUFWriter, config: PreTrainedConfig, widths: list[int], kind: str, name: str, licence: str | None
) -> None:
    layers, head = len(widths), getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_layer = len(set(widths)) > 1
    if name:
        writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(widths if per_layer else widths[0])
    writer.add_head_count([config.num_attention_heads] * layers if per_layer else config.num_attention_heads)
    writer.add_head_count_kv([config.num_key_value_heads] * layers if per_layer else config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add(writer: gguf.GGUFWriter, field: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(field, value)
    elif isinstance(value, int):
        writer.add_uint32(field, value)
    elif isinstance(value, str):
        writer.add_string(field, value)
    else:
        writer.add_array(field, value)


def _tensors(plain: PreTrainedModel, arch: str, kind: Kind) -> Iterator[tuple[str, np.ndarray, Kind]]:
    """(name, data, type) of every tensor, in llama.cpp's names and its order of the rotary dims."""
    config = plain.config
    names = gguf.get_tensor_name_map(
        next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), config.num_hidden_layers
    )
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in plain.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        part = name.rsplit(".", 2)[-2]
        data = tensor.detach().to("cpu", torch.float32)
        if part in heads:
            data = _paired(data, heads[part])
        stored = kind if data.dim() > 1 else Kind.F32
        packed = gguf.quants.quantize(data.contiguous().numpy(), stored)
        if stored is Kind.F16 and not np.isfinite(packed).all():
            raise ModegptError(f"{name} does not fit float16: use --type f32 or q8_0")
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), packed, stored
    if (factors := _rotary_factors(plain)) is not None:
        yield "rope_freqs.weight", factors.numpy(), Kind.F32


def _paired(rows: Tensor, heads: int) -> Tensor:
    """A Llama turns dims i and i + d/2 of a head together, llama.cpp dims 2i and 2i + 1."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _rotary_factors(plain: PreTrainedModel) -> Tensor | None:
    """What llama.cpp divides the frequencies by, (head_dim / 2,) float32; None if nothing scales them."""
    config, own = plain.config, plain.model.rotary_emb.inv_freq.detach().double().cpu()
    unscaled = config.rope_parameters["rope_theta"] ** -(torch.arange(len(own)).double() / len(own))
    factors = unscaled / own
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors.float()
