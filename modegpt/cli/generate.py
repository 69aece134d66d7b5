"""`modegpt generate`."""

from typing import Annotated

import typer

from modegpt.cli import options
from modegpt.cli.facts import provenance, write_json
from modegpt.errors import ModegptError
from modegpt.files import check_file


def generate(
    model: options.ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write at most.")] = 64,
    cache: Annotated[
        bool, typer.Option(help="Keep keys and values. Without them the text is the same, but slower.")
    ] = True,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    json_file: options.JsonOption = None,
) -> None:
    """Continue PROMPT greedily with MODEL, dense or compressed.

    For example:

        modegpt generate smollm2-135m "The capital of France is" --max-new-tokens 16
    """
    check_file("--json", json_file)
    if not prompt:
        raise ModegptError("the prompt is empty: give some text to continue")

    from modegpt.inference import check_length, check_tokens
    from modegpt.sources import load_model
    from modegpt.sources.hub import first_line

    network, tokenizer = load_model(model, dtype=dtype, device=device)
    if tokenizer is None:
        raise ModegptError(f"'{model}' has no tokenizer files: copy them from the original model")
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(network.device)
    given = encoded["input_ids"].shape[1]
    if not given:
        raise ModegptError("the prompt is empty: give some text to continue")
    check_tokens(network, encoded["input_ids"], "tokens of the prompt")
    check_length(network, given + max_new_tokens, "prompt and --max-new-tokens together take")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    how = {"max_new_tokens": max_new_tokens, "do_sample": False, "use_cache": cache, "pad_token_id": pad}
    try:
        ids = network.generate(**encoded, **how)
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:  # what the folder says of generation
        raise ModegptError(f"generation_config.json of '{model}' asks what cannot be: {first_line(error)}") from error
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    facts = {"model": model, "prompt": prompt, "text": text, "new_tokens": ids.shape[1] - given, "seed": None}
    write_json(json_file, facts | provenance(network.device))
    print(text)  # rich would expand tabs
