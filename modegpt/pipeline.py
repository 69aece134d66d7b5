"""MoDeGPT on one screen: score the layers, share out the budget, decompose one layer after the other."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt import parallel
from modegpt.allocate import (
    DEFAULT_CAP,
    MODULES,
    LayerShape,
    Module,
    Ranks,
    SharedShape,
    few_tokens,
    ranks_for,
    share_of,
    softmax_allocation,
    uniform_allocation,
)
from modegpt.calibrate import Calibration, block_influence, enter, walk
from modegpt.correct import Correction, check_share
from modegpt.decompose import (
    DAMPING_START,
    cr_select,
    kept_rms,
    nystrom,
    pair_weights,
    query_key_svd,
    shared_projection,
    value_output_svd,
)
from modegpt.errors import ModegptError, ModegptWarning
from modegpt.families import Decomposed, Family, FreeMatrices, family_of, rewritten
from modegpt.inference import in_eval_mode, tokens_sha256
from modegpt.layer_statistics import LayerStatistics, PackedStatistics
from modegpt.machine import Stopwatch, free_host_bytes, peak_memory_bytes
from modegpt.measure import TOKENS, Curves, check_measuring, measure, measured_allocation
from modegpt.report import LayerReport, Report, count_parameters
from modegpt.sources import token_windows

SELECTION_ONLY = 1e12  # damping that leaves nothing of the regression
PLUS: dict[str, Any] = {"allocation": "measured", "correct": 0.5, "query_key": "best"}  # our best, against the paper
DESTINATIONS: dict[str, dict[str, Any]] = {  # what other programs can hold: heads as they were, and narrower MLPs
    "stock": {"modules": ("mlp",), "allocation": "equal"},
    "gguf": {"modules": ("mlp",), "multiple_of": 32},  # Q8_0 quantizes 32 weights of a row together
}
DECOMPOSING = ("ridge", "pair_score", "query_key", "mlp_damping", "intercept")  # options of decompose_layer
SETTINGS = ("allocation", "epsilon", "cap", "multiple_of", "modules", "inputs", "correct", "measure_tokens")
FEW_TOKENS_DAMPING = 0.3  # of the MLP's regression; without it, a few thousand tokens fit noise


@in_eval_mode
def compress(
    model: PreTrainedModel,
    data: str | Calibration,
    *,
    ratio: float,
    tokenizer: PreTrainedTokenizerBase | None = None,
    samples: int = 64,
    seq_len: int = 512,
    seed: int = 0,
    allocation: Literal["global", "uniform", "equal", "measured"] = "global",
    epsilon: float = 0.2,
    cap: float = DEFAULT_CAP,
    multiple_of: int = 8,
    inputs: Literal["dense", "compressed"] = "dense",
    modules: Sequence[Module] = MODULES,
    intercept: bool = False,
    ridge: float = 1.0,
    pair_score: Literal["joint", "sum"] = "joint",
    query_key: Literal["select", "svd", "best", "shared"] = "select",
    correct: float = 0.0,
    measure_tokens: int = TOKENS,
    mlp_damping: float | None = None,
    gram_dtype: torch.dtype = torch.float32,
    batch_size: int = 4,
    progress: bool = False,
    walks: Literal[1, 2] | None = None,
    statistics: list[LayerStatistics] | None = None,
    known: Mapping[str, Any] | None = None,
    on_known: Callable[[str, Any], None] = lambda _name, _value: None,
    walking: Mapping[str, Any] | None = None,
    done: Mapping[int, LayerReport] | None = None,
    on_layer: Callable[[int, nn.Module, LayerReport], None] | None = None,
    restore: Callable[[int, nn.Module], None] | None = None,
) -> tuple[PreTrainedModel, Report]:
    """Compress a causal language model with MoDeGPT (arXiv 2408.09632).

    The dense model is taken apart: each layer is replaced as it is done, so memory falls, and what is not
    compressed (embeddings, norms) is shared with the result. Copy the model first to keep it.

    Args:
        model: a dense Hugging Face model of a supported family, or of a dialect, which is rewritten as one; on the
            device to work on.
        data: calibration tokens (samples, length) int64, a mapping with `input_ids` and `attention_mask`, or a text,
            from which `samples` windows of `seq_len` tokens are drawn with `tokenizer` and `seed`; or what
            `calibrate.collect` gathered on this very model, to try many settings on one calibration.
        ratio: share of the parameters of the block matrices to remove, in [0, 1).
        allocation: "global" by Block Influence with temperature `epsilon` and at most `cap` per layer; "uniform", where
            layers differ by one unit at most, so that all together meet the budget; "equal", the same ranks in every
            layer, to within half a unit of each; or "measured", which is ours: by what each module of each layer costs
            the model, see `measure`.
        multiple_of: hardware granularity of all ranks.
        inputs: calibrate each layer on "dense" activations (the paper, we believe) or on those of the "compressed"
            layers before it.
        modules: what shrinks, all of "query_key", "value" and "mlp" by default; the others stay, these bear the budget.
        intercept: let the bias of the MLP's output take part in its regression (OPT; a Llama has none).
        ridge: of the leverage scores, relative to the mean of the diagonal.
        pair_score: how the two dims of a rotary pair are scored together, see `decompose.cr_select`.
        query_key: "select" dims, as in the paper, or "svd" where nothing rotates (OPT), see `decompose.query_key_svd`;
            "best" is the second where it can be; "shared" puts one projection in front of all queries and keys, with
            "measured" allocation, see `decompose.shared_projection`. That loses least, and a plain Llama cannot hold
            it without multiplying it out.
        correct: the share of the error of earlier layers that each output matrix pays for, see `correct`; 0 is the
            paper, 0.5 is best.
        measure_tokens: calibration tokens that "measured" runs for every module.
        mlp_damping: of the MLP's regression, relative to the mean of the diagonal; by default as little as possible,
            more for few tokens. SELECTION_ONLY leaves the kept rows of W_down as they are.
        gram_dtype: precision of the products that make the Gram matrices; their sums are float64.
        batch_size: calibration samples that run together.
        progress: show a progress bar.
        walks: the global allocation needs the scores of all layers before it can shrink any. Walk the model once, and
            keep the statistics of all layers in the host's memory, or twice, and keep those of one. None: once if half
            of that memory, where it is free, holds them. The result is the same, to the precision of the products.
        statistics: what `calibrate.collect` gathered on `data`, where tokens are needed as well.
        known, on_known: what an earlier run has found: "scores" (layers,), "curves" (`measure.Curves`), or a part of
            the "measured" divergences; called with such a name and value as each comes to be known.
        walking: more options of `calibrate.stream`, for models that do not fit into memory.
        done: the first layers, if an earlier run has done them: they are only walked through.
        on_layer: takes over every small layer with its report as it is done; the model returned is without them.
        restore: gives an empty small layer of `done` its weights back, where correction has to run it.

    With several ranks (`parallel.ranks`) every one must call this with the same arguments; all get the whole model.

    Returns:
        The compressed model, a Hugging Face model with `generate`, `save_pretrained` and so on, and a report.

    Raises:
        ModegptError: unsupported model, bad option, too little text, tokens that the model does not have, NaN or inf
            (the layer is named), ranks that were not started alike.
    """
    settings = _settings(locals())
    model = rewritten(model)
    family, clock, known = family_of(model), Stopwatch(), dict(known or {})
    layers, shape = family.layers(model), family.shape(model)
    if query_key == "shared":
        shape = SharedShape.of(shape, model.config.hidden_size)
    if query_key == "best":
        settings["query_key"] = "select" if family.rotary else "svd"
    sparsity, ranks = _uniform(family, model, ratio, settings)  # and a bad option is refused before any work
    if allocation == "measured" and not known.get("curves"):
        check_measuring(data, measure_tokens, shape, len(layers), ratio, multiple_of, modules)
    if isinstance(data, str):
        data = _windows(data, tokenizer, samples, seq_len, seed)
    parallel.check_same(settings | {"ratio": ratio, "seed": seed, "sha256 of the tokens": tokens_sha256(data)})
    walking = {"batch_size": batch_size, "product_dtype": gram_dtype, "progress": progress} | dict(walking or {})
    walking["attention"] = query_key == "shared"
    options = {name: settings[name] for name in DECOMPOSING} | {"one_norm": family.query_key_norms == "all heads"}
    decompose = partial(decompose_layer, rotary=family.rotary, **options)
    method = "modegpt-plus" if allocation == "measured" or correct else "modegpt"
    report = Report(method, ratio, settings, count_parameters(model), shape.total * len(layers))
    reports, scores = dict(done or {}), known.get("scores")

    # Who gets the budget: Block Influence, or what each module costs -> sparsity and ranks of each layer
    with clock("measure" if allocation == "measured" else "calibrate"):
        if statistics is None and inputs == "dense" and allocation in ("global", "measured") and not known:
            statistics = _kept(model, data, shape, walks, walking)
        source = data if statistics is None else statistics
        if allocation == "global":
            if scores is None:
                scores = block_influence(model, family, source, **walking)
                on_known("scores", scores)
            sparsity = softmax_allocation(scores, ratio, epsilon, cap * share_of(shape, modules))
            ranks = ranks_for(sparsity, shape, multiple_of, modules)
        if allocation == "measured":
            curves = known.get("curves") or _curves(
                model, data, source, shape, settings, decompose, walking, known, on_known
            )
            on_known("curves", curves)
            sparsity, ranks, expected = measured_allocation(curves, shape, ratio, multiple_of)
            report.measured = {"tokens": curves.tokens, "divergences": curves.measured, "expected": expected}
    compressed = family.shell(model, ranks)

    # Layer by layer: Gram matrices of its activations -> three decompositions -> a smaller layer in its place
    if isinstance(source, PackedStatistics) and source is not data:
        source.last_time = True
    states = enter(model, family, data, **walking) if correct else None
    correction = Correction(states, family, correct, model.device, gram_dtype) if correct else None
    skip = 0 if correction else len(reports)
    grams_of = walk(model, family, source, inputs=inputs, skip=skip, states=states, **walking)
    for index, grams in clock.iterate("calibrate", grams_of if correct else parallel.in_turns(grams_of)):
        small, dense = family.layers(compressed)[index], layers[index]
        if done and index in done:
            restore(index, small)
            correction.skip(index, dense, small)
            small.to("meta")
            continue
        with clock("decompose"):
            channels = None
            if parallel.mine(index):
                decomposed, damping = decompose(grams, family.matrices(dense), ranks[index])
                channels = decomposed.channels.cpu()
                family.fill(small, dense, decomposed)
                score = grams.block_influence if scores is None else float(scores[index])
                reports[index] = LayerReport(ranks[index], sparsity[index].item(), score, damping, grams.tokens)
                del decomposed
            del grams  # before the next layer needs the room
        if correction:
            with clock("correct"):
                parallel.share(small, parallel.owner(index), model.device)
                correction.run(index, dense, small, parallel.gather(channels)[parallel.owner(index)])
        layers[index] = small
        del dense
        if on_layer and index in reports:
            with clock("save"):
                on_layer(index, small, reports[index])
        elif on_layer:
            small.to("meta")  # another rank's, which has it

    _bring_together(family.layers(compressed), layers, reports, None if on_layer else model.device)
    report.add_layers([reports[index] for index in range(len(layers))], shape)
    report.parameters_after = count_parameters(compressed)
    report.seconds, report.peak_memory_bytes = dict(clock.seconds), peak_memory_bytes()
    return compressed, report


def decompose_layer(
    grams: LayerStatistics,
    dense: FreeMatrices,
    ranks: Ranks,
    *,
    rotary: bool,
    one_norm: bool = False,
    ridge: float = 1.0,
    pair_score: Literal["joint", "sum"] = "joint",
    query_key: Literal["select", "svd", "shared"] = "select",
    mlp_damping: float | None = None,
    intercept: bool = False,
    clock: Stopwatch | None = None,
) -> tuple[Decomposed, float]:
    """The method (arXiv 2408.09632, Algorithms 1 to 3): one decomposition for each of a layer's three modules.

    Args:
        grams: what the layer did on the calibration tokens.
        dense: its matrices that are solved for again.
        ranks: what to keep of each module.
        rotary: whether queries and keys rotate, so that dims i and i + d/2 stay together.
        one_norm: whether the query-key norms, if there are any, span all heads.
        ridge, pair_score, query_key, mlp_damping, intercept: as in `compress`.
        clock: counts the seconds of "mlp", "query_key" and "value_output".

    Returns:
        What the decompositions decided, and the largest damping that a Cholesky factor needed.

    Raises:
        ModegptError: statistics without Gram matrices, or with NaN.
    """
    clock = clock or Stopwatch()
    with clock("mlp"):
        damping = mlp_damping or (FEW_TOKENS_DAMPING if few_tokens(grams.tokens, len(dense.down)) else DAMPING_START)
        mean = grams.mlp_mean
        centred = grams.mlp - mean.outer(mean) if intercept else grams.mlp
        channels, down, damped = nystrom(centred, dense.down, ranks.mlp, ridge, damping)
        shift = mean @ dense.down.to(down) - mean[channels] @ down if intercept else None
    with clock("query_key"):
        maps = query_key_svd(grams.query, grams.key, ranks.query_key) if query_key == "svd" else None
        shared = None
        if ranks.shared:
            weight, weights = torch.cat(dense.query_key, 1), pair_weights(grams.query, grams.key)
            shared = shared_projection(grams.attention, weight, weights, ranks.shared)
        dims = cr_select(grams.query, grams.key, ranks.query_key, rotary, pair_score)
    with clock("value_output"):
        value, output, damped_heads = value_output_svd(grams.value, dense.value, dense.output, ranks.value)
    gains = (None, None)
    if grams.query_projected is not None:
        gains = tuple(kept_rms(gram, dims, one_norm) for gram in (grams.query_projected, grams.key_projected))
    decomposed = Decomposed(channels, dims, FreeMatrices(down, value, output), shift, maps, *gains, shared)
    return decomposed, max(float(damped), float(damped_heads.max()))


def check_options(model: PreTrainedModel, ratio: float, **options: Any) -> None:
    """Raise ModegptError for options of `compress` that this model, which needs no weights, does not take."""
    defaults = {name: option.default for name, option in signature(compress).parameters.items()}
    _uniform(family_of(model), model, ratio, _settings(defaults | options))


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the options, in types that JSON has."""
    found = {name: given[name] for name in (*SETTINGS, *DECOMPOSING)}
    return found | {"modules": list(given["modules"]), "gram_dtype": str(given["gram_dtype"])}


def _windows(text: str, tokenizer: PreTrainedTokenizerBase | None, samples: int, seq_len: int, seed: int) -> Tensor:
    if tokenizer is None:
        raise ModegptError("a calibration text needs its tokenizer")
    return token_windows(text, tokenizer, samples, seq_len, seed, what="calibration text")


def _curves(
    model: PreTrainedModel,
    data: Calibration,
    source: Calibration,
    shape: LayerShape,
    settings: Mapping[str, Any],
    decompose: Callable[..., Any],
    walking: Mapping[str, Any],
    known: Mapping[str, Any],
    on_known: Callable[[str, Any], None],
) -> Curves:
    """What every module costs, going on with what an interrupted run has measured."""
    family = family_of(model)
    options = {name: settings[name] for name in ("modules", "multiple_of", "query_key")}
    options |= {"tokens": settings["measure_tokens"], "wait": "resident" in walking, "shape": shape}
    options |= {"batch_size": walking["batch_size"], "progress": walking["progress"]}
    options |= {"measured": known.get("measured", ()), "on_measured": partial(on_known, "measured")}
    return measure(model, family, data, walk(model, family, source, **walking), decompose, **options)


def _bring_together(
    small: nn.ModuleList, layers: nn.ModuleList, reports: dict[int, LayerReport], device: torch.device | None
) -> None:
    """Give every rank all reports and, unless the layers went elsewhere, all weights on its device."""
    for others in parallel.gather(reports):
        reports |= others
    for index, layer in enumerate(small if device else ()):
        parallel.share(layer, parallel.owner(index), device)
        layers[index] = layer


def _uniform(
    family: Family, model: PreTrainedModel, ratio: float, settings: Mapping[str, Any]
) -> tuple[Tensor, list[Ranks]]:
    """The same sparsity in every layer, and ranks that differ by a unit at most, or not at all.

    Raises ModegptError for an option that no allocation can meet.
    """
    count, modules, inputs = len(family.layers(model)), settings["modules"], settings["inputs"]
    if settings["allocation"] not in ("global", "uniform", "equal", "measured"):
        raise ModegptError(f"allocation is global, uniform, equal or measured, got '{settings['allocation']}'")
    if settings["query_key"] not in ("select", "svd", "best", "shared"):
        raise ModegptError(f"query_key is select, svd, best or shared, got '{settings['query_key']}'")
    if settings["query_key"] == "shared":
        if not family.rotary or family.query_key_norms:
            kind = model.config.model_type
            raise ModegptError(f"a '{kind}' has no query_key=shared: it is for a Llama, a Qwen2, or what becomes one")
        if settings["allocation"] != "measured":
            raise ModegptError(
                "query_key=shared takes allocation=measured: --allocation measured, or --method modegpt-plus"
            )
        if "query_key" not in modules:
            raise ModegptError("a projection is to be shared, and query_key is not among the modules")
    if settings["query_key"] == "svd" and family.rotary:
        raise ModegptError("rotary embeddings stand between queries and keys: their dims can only be selected")
    check_share(model, family, settings["correct"])
    if settings["correct"] and inputs == "compressed":
        raise ModegptError("correction runs on dense inputs: leave out one of the two")
    if settings["intercept"] and not family.down_bias(model.config):
        raise ModegptError(f"'{model.config.model_type}' has no bias in its MLP that could be an intercept")
    if settings["intercept"] and "mlp" not in modules:
        raise ModegptError("the intercept is the MLP's, and mlp is not among the modules")
    if parallel.size() > 1 and inputs == "compressed":
        raise ModegptError("several ranks decompose several layers at once: that takes dense inputs, or one rank")
    sparsity, shape = uniform_allocation(count, ratio), family.shape(model)
    even, cap = torch.zeros(count), settings["cap"]
    if settings["allocation"] == "global":
        softmax_allocation(even, ratio, settings["epsilon"], cap)
    one = sparsity[:1] if settings["allocation"] == "equal" else sparsity
    ranks = ranks_for(one, shape, settings["multiple_of"], modules) * (count // len(one))
    if settings["allocation"] == "global":  # some modules cannot lose what all of them could
        softmax_allocation(even, ratio, settings["epsilon"], cap * share_of(shape, modules))
    return sparsity, ranks


def _kept(
    model: PreTrainedModel, data: Calibration, shape: LayerShape, walks: int | None, walking: Mapping[str, Any]
) -> Calibration | None:
    """The statistics of all layers, if asked for, or if half of the host's free memory holds them."""
    if isinstance(data, list | PackedStatistics):
        return data
    on_gpu = model.device.type == "cuda"
    packed = PackedStatistics(walking["product_dtype"] if on_gpu else torch.float64, model.device)
    sizes = (shape.mlp, model.config.hidden_size) if walking["attention"] else (shape.mlp,)
    needed = packed.bytes_for(*sizes) * model.config.num_hidden_layers  # of all ranks, which may be on one host
    free = free_host_bytes()
    wanted = parallel.gather(needed < free / 2 if walks is None else walks == 1)  # or ranks wait for one another
    if not all(wanted):
        if walks is None and parallel.rank() == 0:
            warnings.warn(
                f"the statistics of all layers take {needed / 2**30:.1f} GiB, and half of the host's free memory is "
                f"{free / 2**31:.1f}: the model is walked through twice",
                ModegptWarning,
                2,
            )
        return None
    for _, statistics in walk(model, family_of(model), data, **walking):
        packed.append(statistics)
        del statistics  # it holds gigabytes that the next one needs
    return packed
