"""What results files say of compression and speed on a GPU: rows are found by what they are, in whatever file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from modegpt.families import FAMILIES
from modegpt.study.bench.shapes import config_of, random_model
from modegpt.study.figures.throughput import plain
from modegpt.study.results import DENSE, STEPS, Results, Row

LIVE = "notebook-13"  # the experiment that a notebook makes
ONE_GPU = ("bench.compress", LIVE)  # the experiments that compress on one


def channels(config: PreTrainedConfig) -> int:
    """MLP channels of a model of a known family."""
    return getattr(config, FAMILIES[config.model_type].mlp_size)


def statistics_bytes(config: PreTrainedConfig, item: int = 8) -> int:
    """Bytes of all layers' correlations that the paper's algorithms name: channels, heads, and inputs E[x x^T].

    Args:
        item: bytes of a number.
    """
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    heads = (config.num_attention_heads + groups) * (config.hidden_size // config.num_attention_heads) ** 2
    return item * config.num_hidden_layers * (channels(config) ** 2 + config.hidden_size**2 + heads)


def ledger(shape: str, tokens: int) -> dict[str, int]:
    """Bytes that must be there at once when a layer of a bfloat16 model is taken apart, by part."""
    model = random_model(shape, device="meta")
    matrix = 8 * channels(model.config) ** 2
    return {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "hidden states": 2 * tokens * model.config.hidden_size,
        "one Gram matrix, float64": matrix,
        "its Cholesky factor": matrix,
    }


def name_of(shape: str, run: Results) -> str:
    """A shape with a mark if the run is the notebook's own."""
    return f"{shape}, live" if run.experiment == LIVE else shape


@dataclass(frozen=True)
class Whole:
    """One whole compression: seconds of the run and its steps, and the peak of memory above the model in bytes."""

    run: Results
    shape: str
    variant: str
    tokens: int
    calibrate: float
    decompose: float
    seconds: float
    peak_above: float


def wholes(runs: Iterable[Results]) -> list[Whole]:
    """The compressions on one device that succeeded with the model on it."""
    found = []
    for run in (run for run in runs if run.experiment in ONE_GPU):
        for row in run.find(what="compression"):
            by = {"model": row.model, "variant": row.variant}
            whats = ("compression: calibrate", "compression: decompose", "peak memory above the model")
            parts = [match.value for what in whats for match in run.find(what=what, **by)]
            if row.value is None or len(parts) < len(whats) or None in parts:
                continue
            calibrate, decompose, peak = parts
            tokens = run.settings["samples"] * run.settings["length"]
            found.append(Whole(run, row.model, row.variant, tokens, calibrate, decompose, row.value, peak))
    return found


def steps_of(run: Results, shape: str, method: str = "modegpt") -> dict[str, float]:
    """Seconds of each step of one layer, by this kit ("modegpt") or as the paper's text has it ("literal")."""
    found = {step: run.find(what=f"one layer: {step}", model=shape, method=method) for step in STEPS}
    return {step: rows[0].value for step, rows in found.items()} if all(found.values()) else {}


@dataclass(frozen=True)
class SideBySide:
    """The paper's text beside this kit on one shape: seconds of all layers, and how far they agree.

    `in_common` is the smaller share of common choices, of channels and of dims; `differ` the largest difference of the
    value-output products, relative to their largest entry.
    """

    run: Results
    shape: str
    ours: float
    literal: float
    in_common: float
    differ: float


def side_by_side(runs: Iterable[Results]) -> list[SideBySide]:
    """What `modegpt bench literal` found, for every shape and run."""
    found = []
    for run in runs:
        for row in run.find(what="speed-up"):
            if row.value is None:
                continue
            totals = [run.find(what="all layers", model=row.model, method=m)[0].value for m in ("modegpt", "literal")]
            kept = [run.find(what=f"kept {part} in common", model=row.model)[0].value for part in ("channels", "dims")]
            differ = run.find(what="value-output products differ", model=row.model)[0].value
            found.append(SideBySide(run, row.model, *totals, min(kept), differ))
    return found


def speed_rows(runs: Iterable[Results], shape: str, phase: str, *, mode: str, batch: int, tokens: int) -> list[Row]:
    """Rows of one case of the whole shape, the dense one first, from the run that timed most ratios; or none.

    Args:
        phase: "prefill" or "decode"; mode, batch, tokens: as in the rows' details.
    """
    case = {"mode": mode, "batch": batch, "tokens": tokens}
    found: list[Row] = []
    for run in runs:
        rows = [row for row in _timed(run, shape) if row.what == phase and row.details | case == row.details]
        rows.sort(key=lambda row: row.ratio)
        if rows and rows[0].method == DENSE and len(rows) > len(found):
            found = rows
    return found


def reached(runs: Iterable[Results], shape: str) -> dict[tuple[str, str, int, int], dict[float, list[Row]]]:
    """(phase, way, batch, tokens) -> ratio -> rows of compressed models that stand beside a dense one."""
    found: dict[tuple[str, str, int, int], dict[float, list[Row]]] = {}
    for row in (row for run in runs for row in _timed(run, shape)):
        if row.ratio and "reached" in row.details:
            case = (row.what, *(row.details[name] for name in ("mode", "batch", "tokens")))
            found.setdefault(case, {}).setdefault(row.ratio, []).append(row)
    return found


def _timed(run: Results, shape: str) -> Sequence[Row]:
    """Rows in tokens per second of the shape with all its layers, of uniform sizes and not fused."""
    layers = config_of(shape).num_hidden_layers
    rows = [row for row in run.rows if row.unit == "tokens/s" and row.value and plain(row)]
    return [row for row in rows if row.model.split(",")[0] == shape and row.details.get("layers") == layers]


def kernel_seconds(runs: Iterable[Results], shape: str) -> dict[tuple[str, str, float], tuple[int, float, float]]:
    """(phase, way, ratio) -> kernels of one run, seconds of its matrix products, of all else; the last run's."""
    found = {}
    for row in (row for run in runs for row in run.rows):
        named = row.model.split(",")[0] == shape and plain(row)
        if row.what in ("prefill kernels", "decode kernels") and row.value and named:
            products = row.details["kinds"].get("matrix product", {"seconds": 0.0})["seconds"]
            case = (row.what.split()[0], row.details["mode"], row.ratio)
            found[case] = (row.details["kernels"], products, row.value - products)
    return found
