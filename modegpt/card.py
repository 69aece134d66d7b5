"""The model card (README.md) of a compressed checkpoint: what it was, what was done to it, what it is worth now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modegpt.sources import EMBEDDED_MODELS

CARD_FILE = "README.md"
EMBEDDED_SOURCES = {  # name -> (what it is called elsewhere, licence)
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "opt-mini": ("opt-mini", "cc-by-sa-3.0"),
}
assert EMBEDDED_SOURCES.keys() == EMBEDDED_MODELS.keys()


def source_of(model: str) -> dict[str, str | None]:
    """Name and licence of a model: an embedded one's, or what the model card in its folder or on the hub says.

    The licence is None where no card gives one; a hub that does not answer is not waited for.
    """
    from huggingface_hub import ModelCard, try_to_load_from_cache
    from yaml import YAMLError

    if model in EMBEDDED_SOURCES:
        name, licence = EMBEDDED_SOURCES[model]
        return {"source": name, "licence": licence}
    folder = Path(model).expanduser()
    file = folder / CARD_FILE if folder.is_dir() else try_to_load_from_cache(model, CARD_FILE)
    try:
        licence = ModelCard.load(Path(file)).data.get("license")
    except (OSError, TypeError, ValueError, YAMLError):  # no card, not fetched, or not one that can be read
        licence = None
    name = folder.resolve().name if folder.is_dir() else model
    return {"source": name, "licence": licence if isinstance(licence, str) else None}


def model_card(report: Mapping[str, Any]) -> str:
    """The card of a checkpoint, from the report in its folder, in the hub's format.

    Args:
        report: what `modegpt compress` notes: method, ratios, calibration, versions; `evaluations` once there are any.
    """
    licence, source = report.get("licence"), report.get("source", report["model"])
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [modegpt, compression]"]
    front += [f"base_model: {source}"] * ("/" in source) + [f"license: {licence}"] * (licence is not None)
    loading = (
        "It is a stock model; zeros stand where its shapes had to be uniform, and no code of modegpt is needed."
        if "export" in report
        else "`trust_remote_code` runs the modeling file in this folder. After `import modegpt` it is not needed."
    )
    remote = "" if "export" in report else ", trust_remote_code=True"
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {source}, {report['block_ratio']:.0%} smaller",
        "",
        f"`{source}` compressed with {report['method']}, without fine-tuning: {report['block_ratio']:.1%} of the "
        f"parameters of its decoder blocks are gone, {report['model_ratio']:.1%} of all "
        f"({report['parameters_before'] / 1e6:.1f} M -> {report['parameters_after'] / 1e6:.1f} M).",
        "",
        f"- Calibrated on {report['tokens']:,} tokens of {report['calibration']}, seed {report['seed']}, "
        f"in {report['dtype']}.",
        f"- Command: `{report['command']}`",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in report['versions'].items())}.",
        f"- Licence: that of the source model{f', {licence}' if licence else '; see its model card'}.",
        "",
        "## Loading",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("DIR"{remote})',
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        "```",
        "",
        loading,
        "",
        "## Measured",
        "",
    ]
    rows = report.get("evaluations", [])
    if not rows:
        return "\n".join([*lines, "Not evaluated yet: `modegpt evaluate DIR` adds its result here.", ""])
    lines += ["| text | perplexity | windows | tokens in each | dtype | device |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        error = f" ± {row['standard_error']:.3f}" if row["standard_error"] is not None else ""
        lines.append(
            f"| {row['text']} | {row['perplexity']:.3f}{error} | {row['windows']} | {row['seq_len']} | {row['dtype']} "
            f"| {row['device']} |"
        )
    return "\n".join([*lines, ""])
