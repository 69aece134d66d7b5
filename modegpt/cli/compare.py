"""`modegpt compare`."""

from pathlib import Path
from typing import Annotated

import typer

from modegpt.cli import options
from modegpt.cli.facts import interactive
from modegpt.errors import ModegptError

MethodsOption = Annotated[str, typer.Option(metavar="A,B", help=f"all, or some of {', '.join(options.METHODS)}.")]
FileOption = Annotated[
    Path, typer.Option("--out", metavar="FILE.json", help="Gets the results; .md and .png go beside.")
]


def compare(
    model: options.ModelArgument,
    file: FileOption,
    ratios: options.RatiosOption = "0.1,0.3,0.5",
    methods: MethodsOption = "all",
    calibration: options.CalibrationOption = "wiki-passages",
    samples: options.SamplesOption = 64,
    calibration_length: options.CalibrationLengthOption = 512,
    text: options.TextOption = "wiki-passages",
    windows: options.WindowsOption = 8,
    seq_len: options.SeqLenOption = 2048,
    batch_size: options.BatchOption = 4,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Compress MODEL with every method at every ratio, on the same tokens, and measure perplexity.

    Writes a results file, a table (.md) and a figure (.png). Finished work is kept: after an interruption, the same
    command goes on where it stopped.

        modegpt compare opt-mini --ratios 0.2,0.4 --methods modegpt,svd-llm,slicegpt --out opt-mini.json
    """
    wanted = options.ratios(ratios)
    chosen = options.methods() if methods == "all" else methods.split(",")
    options.check_methods(chosen)
    options.check_results_file(file, (".md", ".png"), overwrite)

    from modegpt.families import family_of
    from modegpt.machine import dtype_name
    from modegpt.sources import check_length, load_model, load_text, same_source, token_windows
    from modegpt.study.compare import compare_to_file

    passage, evaluation = load_text(calibration, "calibration"), load_text(text, "evaluation")
    if same_source(calibration, text):
        raise ModegptError(f"calibration and evaluation would share the text '{text}': name another for one of them")
    dense, tokenizer = load_model(model, dtype=dtype, device=device)
    family_of(dense)
    check_length(dense, max(calibration_length, seq_len))
    tokens = token_windows(passage, tokenizer, samples, calibration_length, seed, what=f"'{calibration}'")
    held_out = token_windows(evaluation, tokenizer, windows or None, seq_len, what=f"'{text}'")
    settings = {"model": Path(model).name, "dtype": dtype_name(dense.dtype), "calibration": calibration}
    settings |= {"samples": samples, "calibration_length": calibration_length, "text": text, "seq_len": seq_len}
    settings |= {"windows": len(held_out), "seed": seed}
    compare_to_file(dense, tokens, held_out, chosen, wanted, settings, file, batch_size, interactive())
