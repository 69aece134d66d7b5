"""The model card (README.md) of a compressed checkpoint: what it was, what was done to it, what it is worth now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

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
HUB_TEXTS = {
    "wikitext2": "Salesforce/wikitext",
    "c4": "allenai/c4",
    "alpaca": "tatsu-lab/alpaca",
    "wiki-passages": "google/boolq",
}
LICENCE = re.compile(r"[a-z][a-z0-9.+-]*")  # the form of the hub's identifiers
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
    kind = "SequenceClassification" if "task" in report else "CausalLM"
    head = front_matter(report).to_yaml().rstrip()
    licence, source = (" ".join(str(words or "").split()) for words in (licence, source))  # one line in the text
    title = f"{source}, compressed, as a plain model" if export else f"{source}, {report['block_ratio']:.0%} smaller"
    what = (
        f"`{source}` compressed with {PAPERS.get(report['method'], report['method'])}, without fine-tuning: "
        f"{report['block_ratio']:.1%} of the parameters of its decoder blocks are gone, {report['model_ratio']:.1%} of "
        f"all ({report['parameters_before'] / 1e6:.1f} M -> {report['parameters_after'] / 1e6:.1f} M)."
    )
    if export:
        shared = report.get("settings", {}).get("query_key") == "shared"
        out = ", its shared projection multiplied out" if shared else ""
        what += (
            f" Then written as a plain model{out}, with zeros where all layers must have one size: "
            f"{export['saved']:.1%} of the decoder blocks' parameters are saved, "
            f"{export['padding']:.1%} of what is left is padding."
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
    parts = ["---", head, "---", "", f"# {title}", "", what, "", *facts, "", "## Loading", "", *code, "", loading]
    parts += ["", "## Measured", "", "<!-- measured -->", measured_part(report) + "<!-- end of measured -->", ""]
    return "\n".join(parts)


def front_matter(report: Mapping[str, Any]) -> ModelCardData:
    """The card's metadata, as the hub accepts it.

    A source that is no hub id is left to the text, a licence of another form is "other" by that name. `datasets` are
    those of the calibration, `model-index` has the perplexities measured.
    """
    from huggingface_hub import ModelCardData

    source, licence = report.get("source", report["model"]), report.get("licence")
    parts = str(report["calibration"]).split("+") if report["tokens"] else []
    sets = dict.fromkeys(HUB_TEXTS[name] for part in parts if (name := part.split(":")[0]) in HUB_TEXTS)
    known = {"base_model": source} if "/" in source and _is_repo_id(source) else {}
    if licence:
        known |= {"license": licence} if LICENCE.fullmatch(licence) else {"license": "other", "license_name": licence}
    if sets:
        known |= {"datasets": list(sets)}
    if rows := evaluations(report):
        known |= {"model_name": " ".join(source.split("/")[-1].split()), "eval_results": rows}
    task = "text-classification" if "task" in report else "text-generation"
    tags = ["modegpt", "compression"]
    return ModelCardData(library_name="transformers", pipeline_tag=task, tags=tags, **known)


def evaluations(report: Mapping[str, Any]) -> list[EvalResult]:
    """The perplexities of a report in the form of the hub's model-index."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=HUB_TEXTS.get(str(row["text"]).split(":")[0], str(row["text"])),
            dataset_name=str(row["text"]),
            metric_type="perplexity",
            metric_value=row["perplexity"],
            metric_name=f"perplexity, {row['windows']} windows of {row['seq_len']} tokens, {row['dtype']}",
        )
        for row in report.get("evaluations", [])
        if row["perplexity"] is not None
    ]


def measured_again(card: str, report: Mapping[str, Any]) -> str:
    """A card with the evaluations of this report, and all else as its owner left it."""
    from huggingface_hub import ModelCard

    if not MEASURED.search(card):
        return card
    new = ModelCard(MEASURED.sub(lambda _: measured_part(report), card))
    own = front_matter(report)
    new.data.model_name, new.data.eval_results = new.data.model_name or own.model_name, own.eval_results
    return str(new)


def _is_repo_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def measured_part(report: Mapping[str, Any]) -> str:
    """The table of evaluations, which alone changes when there is a new one."""
    rows = report.get("evaluations", [])
    if not rows:
        return "Not evaluated yet: `modegpt evaluate` adds its result here.\n"
    lines = ["| text | perplexity | windows | tokens in each | dtype | device |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        error = f" ± {row['standard_error']:.3f}" if row["standard_error"] is not None else ""
        text = str(row["text"]).replace("|", r"\|")
        perplexity = "not finite" if row["perplexity"] is None else f"{row['perplexity']:.3f}"
        lines.append(
            f"| {text} | {perplexity}{error} | {row['windows']} | {row['seq_len']} | {row['dtype']} | {row['device']} |"
        )
    return "\n".join([*lines, ""])
