"""Loading from local folders and from the Hugging Face hub: quick answers and one-line errors."""

import errno
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from modegpt.errors import ModegptError
from modegpt.sources.packages import EMBEDDED_MODELS

PROBE_SECONDS = 5.0


def hub_reachable(repo: str, repo_type: Literal["model", "dataset"]) -> bool:
    """Asks the hub for `repo` once; left alone, the libraries retry for 25 to 45 s when no hub is there.

    Raises ModegptError when the hub answers that there is no such repository (or it is private).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # HTTPError: of httpx or httpx2

    try:
        HfApi().repo_info(repo, repo_type=repo_type, timeout=PROBE_SECONDS)
    except RepositoryNotFoundError as error:
        raise _not_found(repo, repo_type) from error
    except (HTTPError, OSError):
        return False
    return True


def dataset_rows(repo: str, *, advice: str, documents: int | None = None, **options: Any) -> list[dict[str, Any]]:
    """The rows of one split of the hub's dataset `repo`; `options` go to `datasets.load_dataset`.

    With `documents` only that many are streamed (never cached), else the split is downloaded and cached.
    Raises ModegptError, which ends with `advice`, without such data or without network and cache.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    failure = ModegptError(f"cannot get {repo} from the Hugging Face hub (no network?): {advice}")
    streaming, source = documents is not None, repo
    if not hub_reachable(repo, "dataset"):
        readme = try_to_load_from_cache(repo, "README.md", repo_type="dataset")
        if streaming or not isinstance(readme, str):
            raise failure
        source = str(Path(readme).parent)  # a cached copy of the repository; asking for `repo` would wait 25 s
    from datasets import load_dataset

    try:
        rows = load_dataset(source, streaming=streaming, **options)
        return list(rows.take(documents) if streaming else rows)
    except (HTTPError, ConnectionError, FileNotFoundError) as error:
        raise failure from error


@contextmanager
def quiet_transformers(*, bars: bool = False) -> Iterator[None]:
    """Keeps transformers' warnings, and unless `bars` its progress bars, off the screen."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turns what goes wrong inside transformers' loading into a ModegptError, which keeps its first line.

    A lack of memory passes: what to do about it is not a question of the model.
    """
    from torch import OutOfMemoryError

    try:
        yield
    except (ModegptError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        raise _reason(name, error) from error


def first_line(error: Exception) -> str:
    """What an error says, or what it is if that says more: a KeyError holds a bare word."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if " " in text else f"{type(error).__name__}: {text}".rstrip(": ")


def _reason(name: str, error: Exception) -> ModegptError:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        StrictDataclassError,
    )
    from safetensors import SafetensorError

    causes = list(_chain(error))
    text = str(error)

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(GatedRepoError):
        return ModegptError(
            f"'{name}' is gated: accept its licence on its hub page, run `hf auth login`, then try again"
        )
    if caused_by(RepositoryNotFoundError):
        return _not_found(name, "model")
    if caused_by(LocalEntryNotFoundError, OfflineModeIsEnabled):
        return _unreachable(name)
    if caused_by(StrictDataclassError):
        return ModegptError(f"config.json of '{name}' is not valid: {text.splitlines()[-1].strip()}")
    if caused_by(json.JSONDecodeError):
        return ModegptError(f"a JSON file of '{name}' is damaged: get the model again")
    if "Weights only load failed" in text:
        return ModegptError(
            f"the weights of '{name}' are corrupt, or a pickle of more than tensors, which modegpt does not run"
        )
    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError) or _is_cut_bin(error):
        return ModegptError(f"the weights of '{name}' are corrupt or cut short: get the model again")
    if isinstance(error, FileNotFoundError) or "no file named" in text:
        return ModegptError(f"'{name}' lacks a weights file: get the model again")
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        return ModegptError(f"'{name}' is no causal language model that this version of transformers knows")
    if "trust_remote_code" in text:
        return ModegptError(f"'{name}' needs Python code from its own folder, which modegpt does not run")
    if isinstance(error, ValueError) and "must list one positive integer" in text:
        return ModegptError(f"config.json of '{name}' is not valid: {text}")
    return ModegptError(f"'{name}' cannot be loaded: {first_line(error)}")


def _is_cut_bin(error: Exception) -> bool:
    """torch.load maps a .bin into memory; a truncated one ends in EINVAL or an error of the zip reader."""
    return (isinstance(error, OSError) and error.errno == errno.EINVAL) or "PytorchStreamReader" in str(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _not_found(repo: str, repo_type: str) -> ModegptError:
    embedded = f" (embedded models: {', '.join(EMBEDDED_MODELS)})" if repo_type == "model" else ""
    return ModegptError(f"the hub has no '{repo}': check the name{embedded}, or run `hf auth login` if it is private")


def _unreachable(model: str) -> ModegptError:
    return ModegptError(
        f"no folder '{model}' here, and it cannot be had from the Hugging Face hub (no network, not in its cache): "
        f"check the network, or name a local folder or an embedded model ({', '.join(EMBEDDED_MODELS)})"
    )
