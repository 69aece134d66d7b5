"""The model card (README.md) of a compressed checkpoint: what it was, what was done to it, what it is worth now."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CARD_FILE = "README.md"
OLDEST_TRANSFORMERS = "5.10.4"
EMBEDDED_SOURCES = {  # name -> (what it is called elsewhere, licence)
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "opt-mini": ("opt-mini", "cc-by-sa-3.0"),
}
PAPERS = {
    "modegpt": "[MoDeGPT](https://arxiv.org/abs/2408.09632)",
    "modegpt-plus": "[MoDeGPT](https://arxiv.org/abs/2408.09632) with measured allocation and half correction",
    "svd": "a truncated SVD of every matrix",
    "svd-llm": "the whitening of [SVD-LLM](https://arxiv.org/abs/2403.07378)",
    "fwsvd": "[FWSVD](https://arxiv.org/abs/2207.00112)",
    "fwsvd-shifted": "[FWSVD](https://arxiv.org/abs/2207.00112) with a known fault, labels shifted twice",
    "slicegpt": "[SliceGPT](https://arxiv.org/abs/2401.15024)",
    "shortgpt": "[ShortGPT](https://arxiv.org/abs/2403.03853)",
    "magnitude": "magnitude pruning",
}
MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end of measured -->)", re.DOTALL)


def source_of(model: str) -> dict[str, str | None]:
    """Name and licence of a model: an embedded one's, or what the model card in its folder or on the hub says.

    The licence is None where no card gives one; a hub that does not answer is not waited for.
    """
    from huggingface_hub import HfApi, ModelCard

    if model in EMBEDDED_SOURCES:
        name, licence = EMBEDDED_SOURCES[model]
        return {"source": name, "licence": licence}
    folder = Path(model).expanduser()
    try:
        if folder.is_dir():
            licence = ModelCard.load(folder / CARD_FILE).data.get("license")
        else:
            licence = HfApi().model_info(model, timeout=5).card_data.license
    except Exception:  # no card that can be read, for one of many reasons
        licence = None
    name = folder.resolve().name if folder.is_dir() else model
    return {"source": name, "licence": licence if isinstance(licence, str) else None}


def model_card(report: Mapping[str, Any], stock: bool, architecture: str | None = None) -> str:
    """The card of a checkpoint, from the report in its folder, in the hub's format.

    Args:
        report: what `modegpt compress` notes: method, ratios, calibration, versions; `evaluations` once there are any.
        stock: whether transformers knows the architecture by itself.
        architecture: what the source was and what it was rewritten as, if it was.
    """
    licence, source, export = report.get("licence"), report.get("source", report["model"]), report.get("export")
    kind, task = ("SequenceClassification", "classification") if "task" in report else ("CausalLM", "generation")
    front = {"library_name": "transformers", "pipeline_tag": f"text-{task}", "tags": ["modegpt", "compression"]}
    front |= ({"base_model": source} if "/" in source else {}) | ({"license": licence} if licence else {})
    licence, source = (" ".join(str(words or "").split()) for words in (licence, source))  # one line in the text
    title = f"{source}, compressed, as a plain model" if export else f"{source}, {report['block_ratio']:.0%} smaller"
    what = (
        f"`{source}` compressed with {PAPERS.get(report['method'], report['method'])}, without fine-tuning: "
        f"{report['block_ratio']:.1%} of the parameters of its decoder blocks are gone, {report['model_ratio']:.1%} of "
        f"all ({report['parameters_before'] / 1e6:.1f} M -> {report['parameters_after'] / 1e6:.1f} M)."
    )
    if export:
        what += (
            f" Then written as a plain model, with zeros where all layers must have one size: {export['saved']:.1%} of "
            f"the decoder blocks' parameters are saved, {export['padding']:.1%} of what is left is padding."
        )
    used = f"Calibrated on {report['tokens']:,} tokens of {report['calibration']}"
    used += f", {report['examples']:,} texts with labels" if "task" in report else f", seed {report['seed']}"
    facts = [
        f"- {used if report['tokens'] else 'No calibration text was looked at'}, in {report['dtype']}.",
        *([f"- Architecture of the source: {architecture}."] if architecture else []),
        f"- Command: `{report['command']}`",
        *([f"- Then: `{export['command']}`"] if export else []),
        f"- Versions: {', '.join(f'{name} {number}' for name, number in report['versions'].items())}.",
        f"- Licence: that of the source model{f', {licence}' if licence else '; see its model card'}.",
    ]
    loading = (
        "It is a stock model: no code of modegpt is needed."
        if stock
        else f"It needs transformers {OLDEST_TRANSFORMERS} or newer. `trust_remote_code` runs the modeling file in "
        "this folder; after `import modegpt.modeling` it is not needed."
    )
    code = [
        "```python",
        f"from transformers import AutoModelFor{kind}, AutoTokenizer",
        "",
        'DIR = "where this folder lies"',
        f"model = AutoModelFor{kind}.from_pretrained(DIR{'' if stock else ', trust_remote_code=True'})",
        "tokenizer = AutoTokenizer.from_pretrained(DIR)",
        "```",
    ]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip()
    parts = ["---", head, "---", "", f"# {title}", "", what, "", *facts, "", "## Loading", "", *code, "", loading]
    parts += ["", "## Measured", "", "<!-- measured -->", measured_part(report) + "<!-- end of measured -->", ""]
    return "\n".join(parts)


def measured_part(report: Mapping[str, Any]) -> str:
    """The table of evaluations, which alone changes when there is a new one."""
    rows = report.get("evaluations", [])
    if not rows:
        return "Not evaluated yet: `modegpt evaluate` adds its result here.\n"
    lines = ["| text | perplexity | windows | tokens in each | dtype | device |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        error = f" ± {row['standard_error']:.3f}" if row["standard_error"] is not None else ""
        text = str(row["text"]).replace("|", r"\|")
        lines.append(
            f"| {text} | {row['perplexity']:.3f}{error} | {row['windows']} | {row['seq_len']} | {row['dtype']} "
            f"| {row['device']} |"
        )
    return "\n".join([*lines, ""])
