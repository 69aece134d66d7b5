"""`modegpt export`."""

from pathlib import Path
from typing import Annotated

import typer

from modegpt.cli import options
from modegpt.cli.facts import provenance, report_of, without_places, write_json
from modegpt.console import out
from modegpt.errors import ModegptError
from modegpt.files import check_file


def export(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a compressed model.")],
    folder: Annotated[Path, typer.Option("--stock", metavar="OUT", help="Where the plain Llama or OPT goes.")],
    overwrite: options.OverwriteOption = False,
    json_file: options.JsonOption = None,
) -> None:
    """Save the compressed model in DIR as a plain Llama or OPT, which any tool loads without remote code.

    It computes the same. But a plain model has one size for all layers, so zeros pad the heads to their dense size
    and the MLPs to that of the widest layer. After `modegpt compress` with --modules mlp and --allocation uniform few
    are needed, since the widths differ by one unit at most:

        modegpt export small --stock plain
    """
    source = model.expanduser().resolve()  # an absolute path is never the name of an embedded model
    if not (source / "config.json").is_file():
        raise ModegptError(f"'{model}' is no folder of a model: give what `modegpt compress --out` wrote")
    if overwrite and source.is_relative_to(folder.resolve()):
        raise ModegptError(f"--stock {folder} would replace the model that is read: name another folder")
    check_file("--json", json_file)

    from modegpt.checkpoint.export import check_compressed, stock_model
    from modegpt.checkpoint.folder import check_output, save_checkpoint
    from modegpt.machine import dtype_name
    from modegpt.sources import load_model
    from modegpt.sources.folders import read_config
    from modegpt.sources.hub import clear_errors

    check_output(folder, overwrite)
    with clear_errors(str(model)):
        config = read_config(source, str(model))
    check_compressed(config)
    small, tokenizer = load_model(str(source), dtype=config.dtype or "float32")
    plain, report = stock_model(small)
    facts = {"model": str(source), "dtype": dtype_name(plain.dtype)} | report.to_dict() | provenance(plain.device)
    # beside what compress noted: evaluate looks there for the calibration text
    noted = report_of(source) | {"export": without_places(facts)}
    noted.pop("evaluations", None)  # they were another model's, even if this one computes the same
    save_checkpoint(folder, plain, tokenizer, noted, overwrite)
    sizes = {"bytes_compressed": _weights_bytes(source), "bytes_exported": _weights_bytes(folder)}
    write_json(json_file, facts | sizes | {"seed": None})
    before, after = (size / 1e6 for size in sizes.values())
    out.print(str(report))
    out.print(
        f"weights on disk: {before:.1f} MB compressed -> {after:.1f} MB exported ({dtype_name(plain.dtype)}); "
        f"saved in {folder}, a plain {type(plain).__name__}"
    )


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}"))
