"""python -m modegpt.course.submission ORDER.json: runs a submission to the challenge, in a process of its own.

A submission is a program. What stands around it here keeps accidents and simple cheating out, not an attacker: the text
that scores is not opened, nothing is started, nothing connects, and files are written in the scratch folder alone.
"""

import contextlib
import json
import os
import resource
import runpy
import sys
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = ("subprocess.", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.system", "pty.", "socket.connect")
MOVES = ("os.link", "os.symlink", "os.rename")


def wall(scratch: Path, closed: list[str]) -> None:
    """From here on this process writes in `scratch` only, opens nothing in `closed`, and starts no other.

    Python asks an audit hook before it does such things, and no Python code can take a hook away. Libraries that open
    files by themselves do not ask.
    """

    def within(path: str, places: list[str]) -> bool:
        return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"a submission may not start programs or connect ({event})")
        if event == "open" or event in MOVES:
            named = arguments[:1] if event == "open" else arguments[:2]
            paths = [os.path.realpath(os.fsdecode(path)) for path in named if not isinstance(path, int)]
            if any(within(path, closed) for path in paths):
                raise RuntimeError(
                    "a submission may not read the text that it is scored on"
                )  # no OSError to recover from
            writes = event in MOVES or (arguments[2] or 0) & WRITES
            outside = [path for path in paths if writes and not within(path, [str(scratch), "/dev"])]
            if outside:
                raise PermissionError(f"a submission may not write {outside[0]}, only in the folder that it runs in")

    sys.addaudithook(hook)


def main(order: dict[str, Any]) -> None:
    """Load the model and the calibration text, hand them over, save what comes back."""
    import torch
    from transformers import PreTrainedModel

    from modegpt.sources import load_model

    with contextlib.suppress(AttributeError):  # no such call on macOS
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["cores"]])
    torch.set_num_threads(order["cores"])
    torch.manual_seed(0)
    model, tokenizer = load_model(order["model"])
    text, scratch = Path("calibration.txt").read_text(encoding="utf-8"), Path.cwd().resolve()
    seconds = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1 + order["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    wall(scratch, order["closed"])
    compress = runpy.run_path(order["submission"])["compress"]
    small = compress(model, tokenizer, text, order["ratio"])
    if not isinstance(small, PreTrainedModel):
        raise TypeError(f"compress should return a Hugging Face model, it returns a {type(small).__name__}")
    small.save_pretrained(scratch / "small")


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(3)
