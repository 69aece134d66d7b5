"""`modegpt export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from modegpt.cli import options
from modegpt.cli.facts import provenance, report_of, without_places, write_json
from modegpt.console import out
from modegpt.errors import ModegptError
from modegpt.files import check_file


class WeightType(StrEnum):
    """Values of --type."""

    F32 = "f32"
    F16 = "f16"
    Q8_0 = "q8_0"


def export(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a compressed model.")],
    folder: Annotated[
        Path | None, typer.Option("--stock", metavar="OUT", help="Where the plain Llama or OPT goes.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--gguf", metavar="OUT.gguf", help="Where a file for llama.cpp goes; Llamas only.")
    ] = None,
    kind: Annotated[WeightType, typer.Option("--type", help="How --gguf stores the matrices.")] = WeightType.F16,
    overwrite: options.OverwriteOption = False,
    json_file: options.JsonOption = None,
) -> None:
    """Save the compressed model in DIR as a plain Llama or OPT, or as a GGUF file, which need no code of ours.

    A plain model computes the same. But it has one size for all layers, so zeros pad the heads to their dense size and
    the MLPs to that of the widest layer. After `modegpt compress --for stock` none are needed:

        modegpt export small --stock plain

    A GGUF file is never padded. It takes what `modegpt compress` made --for gguf or --for stock, and plain Llamas:

        modegpt export small --gguf small.gguf --type q8_0
    """
    if (folder is None) == (file is None):
        raise ModegptError("say what to write: either --stock OUT, a folder, or --gguf OUT.gguf, a file")
    source = model.expanduser().resolve()  # an absolute path is never the name of an embedded model
    if not (source / "config.json").is_file():
        raise ModegptError(f"'{model}' is no folder of a model: give what `modegpt compress --out` wrote")
    check_file("--json", json_file)
    if folder is not None:
        facts = _stock(source, str(model), folder, overwrite)
    else:
        facts = _gguf(source, str(model), file, kind.value, overwrite)
    write_json(json_file, facts | {"seed": None})


def _config(source: Path, name: str) -> Any:
    from modegpt.sources.folders import read_config
    from modegpt.sources.hub import clear_errors

    with clear_errors(name):
        return read_config(source, name)


def _stock(source: Path, name: str, folder: Path, overwrite: bool) -> dict[str, Any]:
    if overwrite and source.is_relative_to(folder.resolve()):
        raise ModegptError(f"--stock {folder} would replace the model that is read: name another folder")

    from modegpt.checkpoint.export import check_compressed, stock_model
    from modegpt.checkpoint.folder import check_output, save_checkpoint
    from modegpt.machine import dtype_name
    from modegpt.sources import load_model

    check_output(folder, overwrite)
    config = _config(source, name)
    check_compressed(config)
    small, tokenizer = load_model(str(source), dtype=config.dtype or "float32")
    plain, report = stock_model(small)
    facts = {"model": str(source), "dtype": dtype_name(plain.dtype)} | report.to_dict() | provenance(plain.device)
    # beside what compress noted: evaluate looks there for the calibration text
    noted = report_of(source) | {"export": without_places(facts)}
    noted.pop("evaluations", None)  # they were another model's, even if this one computes the same
    save_checkpoint(folder, plain, tokenizer, noted, overwrite)
    sizes = {"bytes_compressed": _weights_bytes(source), "bytes_exported": _weights_bytes(folder)}
    before, after = (size / 1e6 for size in sizes.values())
    out.print(str(report))
    out.print(
        f"weights on disk: {before:.1f} MB compressed -> {after:.1f} MB exported ({dtype_name(plain.dtype)}); "
        f"saved in {folder}, a plain {type(plain).__name__}"
    )
    return facts | sizes


def _gguf(source: Path, name: str, file: Path, kind: str, overwrite: bool) -> dict[str, Any]:
    if file.exists() and not (overwrite and file.is_file()):
        way_out = "name a file" if file.is_dir() else "name another file, or add --overwrite"
        raise ModegptError(f"--gguf {file} is already there: {way_out}")
    check_file("--gguf", file)

    from modegpt.checkpoint.gguf_file import check_rows, check_shapes, write_gguf
    from modegpt.sources import load_model

    config = _config(source, name)
    check_shapes(config)
    check_rows(config, kind)
    model, tokenizer = load_model(str(source), dtype="float32")
    noted = report_of(source)
    architecture = write_gguf(model, tokenizer, file, kind, noted.get("source", source.name), noted.get("licence"))
    sizes = {"bytes_compressed": _weights_bytes(source), "bytes_exported": file.stat().st_size}
    facts = {"model": str(source), "type": kind, "architecture": architecture} | sizes | provenance(model.device)
    before, after = (size / 1e6 for size in sizes.values())
    out.print(
        f"{before:.1f} MB of weights -> {after:.1f} MB in {file}, {kind}, for llama.cpp's architecture "
        f"'{architecture}'; nothing is padded"
    )
    return facts


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}"))
