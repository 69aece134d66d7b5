"""`modegpt evaluate`."""

from typing import Annotated

import typer

from modegpt.cli import options
from modegpt.cli.facts import write_json
from modegpt.console import err, out, show_table
from modegpt.errors import ModegptError
from modegpt.files import check_file

TasksOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Zero-shot tasks instead of perplexity: paper-five, arc_easy, arc_challenge, boolq, ..."
    ),
]
EvaluationBatchOption = Annotated[
    int | None, typer.Option(min=1, help="Windows (default 1) or answers (default 16) in a batch.")
]


def evaluate(
    context: typer.Context,
    model: options.ModelArgument,
    text: options.TextOption = "wiki-passages",
    windows: options.WindowsOption = 24,
    seq_len: options.SeqLenOption = 2048,
    tasks: TasksOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many questions of each task, from the start.")] = None,
    batch_size: EvaluationBatchOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    json_file: options.JsonOption = None,
) -> None:
    """Measure perplexity of MODEL, dense or compressed, on the evaluation part of a text, or its zero-shot accuracy.

    Windows do not overlap, the loss is taken in float32, and no window is dropped. The papers' protocol is
    --text wikitext2 --windows 0 with 2048 or 4096 tokens, and --tasks paper-five for zero-shot accuracy. With --tasks,
    perplexity is measured only if --text is given too.

        modegpt evaluate opt-mini --windows 4 --json opt-mini.json
    """
    check_file("--json", json_file)
    if limit and tasks is None:
        raise ModegptError("--limit is for --tasks: name some, such as --tasks paper-five")

    from modegpt.cli.evaluating import Evaluation

    wants_text = tasks is None or context.get_parameter_source("text").name == "COMMANDLINE"
    evaluation = Evaluation(model, tasks, text if wants_text else None, device, dtype)
    if wants_text:
        evaluation.perplexity(windows, seq_len, batch_size or 1)
    if tasks is not None:
        evaluation.accuracies(limit, batch_size or 16)
    write_json(json_file, evaluation.facts())
    for warning in evaluation.warnings:
        err.print(f"warning: {warning}", style="yellow")
    if evaluation.line:
        out.print(evaluation.line)
    if evaluation.table:
        show_table(evaluation.table, 100)
        out.print("says: how often the model prefers the first, second, ... answer; right: how often that is right")
