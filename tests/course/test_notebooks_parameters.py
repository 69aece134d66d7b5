"""Other parameters: those out of range are refused in one sentence, those that the text recommends run through."""

import contextlib
import functools
import io
from pathlib import Path
from typing import Any

import pytest

from modegpt import ModegptError
from modegpt.course import activations, files

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
OUT_OF_RANGE = [
    ("00", {"layer": 30}, "layers 0 to 29"),
    ("00", {"keep": 0}, "keep lies between"),
    ("01", {"window": 0}, "at least 2"),
    ("01", {"samples": 0, "window": 64}, "at least 1"),
    ("02", {"rank": 0}, "rank must be from 1 to 191"),
    ("02", {"kept": [64]}, "dims per head from 1 to 63"),
    ("03", {"keep": 1536}, "from 1 to 1535"),
    ("03", {"kept": []}, "from 1 to 1535"),
    ("03", {"damping": -1.0}, "damping .* must be positive"),
    ("03", {"tokens": [9000]}, "from 1 to 8192"),
    ("04", {"RANK": 31}, "must be even"),
    ("04", {"SHIFTS": []}, "1 or more"),
    ("05", {"rank": 64}, "from 1 to 63"),
    ("05", {"timing_widths": [100]}, "multiples of 64"),
    ("06", {"probed": [0, 1]}, "11 among them"),
    ("06", {"temperatures": []}, "at least one"),
    ("06", {"samples": 0}, "at least 1"),
    ("07", {"ratio": 1.5}, "between 0 and 0.9"),
    ("07", {"ratios": [0.5, 0.1]}, "ascend"),
    ("07", {"seeds": [0]}, "two or more"),
    ("07", {"multiple_of": 0}, "one or more"),
    ("07", {"model_name": "smollm2"}, "did you mean smollm2-135m"),
    ("07", {"model_name": "opt-mini"}, "takes a Llama"),
    ("07", {"device": "cuda:99"}, "use cpu or auto"),
    ("08", {"ratio": 1.5}, "between 0 and 0.9"),
    ("08", {"ratios": [0.5, 0.1]}, "ascend"),
    ("08", {"seeds": [0]}, "two or more"),
    ("08", {"model_name": "smollm2-135m"}, "takes an OPT"),
    ("09", {"tokens": 1000}, "a multiple of length"),
    ("09", {"short": 4}, "short is 8 or more"),
    ("09", {"draws": [0, 0]}, "two or more"),
    ("09", {"samples": 0}, "one or more"),
    ("09", {"model_name": "opt-mini"}, "takes a Llama"),
    ("11", {"layer": 8}, "between 0 and 7"),
    ("11", {"ratio": 0.0}, "between 0 and 0.9"),
    ("11", {"gradient_windows": 31}, "4 to samples"),
    ("12", {"layer": 8}, "between 0 and 7"),
    ("12", {"ratio": 0.5}, "what the heads can bear"),
    ("12", {"corrected_windows": 25}, "between 1 and 24"),
    ("13", {"shape": "llama-2"}, "unknown shape 'llama-2'"),
    ("13", {"shape": "tiny-llama"}, "nothing is stored of tiny-llama: use llama-2-13b"),
    ("13", {"shape": "llama-3-8b"}, "nothing is stored of llama-3-8b"),
    ("13", {"ratio": 1.5}, "ratio is the share"),
    ("13", {"device": "cuda:99"}, "use cpu or auto"),
    ("13", {"live": True, "device": "cpu"}, "live wants a GPU"),
    ("13", {"own_model": "smollm2"}, "did you mean smollm2-135m"),
    ("14", {"ratio": 0.8}, "between 0 and 0.7"),
    ("15", {"folder": "nowhere"}, "no results in nowhere: run `make reproduce`"),
]
RECOMMENDED = [
    ("03", {"layer": 2, "kept": [512, 1024], "tokens": [1024, 8192]}),  # and fewer points in its pictures
    ("01", {"layer": 0, "window": 64}),
    ("13", {"shape": "llama-2-13b"}),
    ("15", {"folder": "../figures"}),
]
ACTIVATIONS = functools.cache(activations.layer_activations)  # what many of them begin with


@pytest.fixture(autouse=True)
def seen_once(monkeypatch):
    monkeypatch.setattr(activations, "layer_activations", ACTIVATIONS)


def run(number: str, parameters: dict[str, Any], monkeypatch) -> None:
    """The code cells in this process, with these in place of the notebook's own parameters."""
    monkeypatch.chdir(FOLDER)
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    names: dict[str, Any] = {}
    for cell in files.read(path).cells:
        if cell.cell_type == "code":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(cell.source, f"{path.stem}, {cell.id}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                assert set(parameters) <= set(names)
                names |= parameters


@pytest.mark.parametrize(("number", "parameters", "message"), OUT_OF_RANGE)
def test_a_parameter_out_of_range_is_refused_in_one_sentence(number, parameters, message, monkeypatch):
    with pytest.raises(ModegptError, match=message) as refusal:
        run(number, parameters, monkeypatch)
    assert "\n" not in str(refusal.value)
    assert refusal.value._render_traceback_() == [f"modegpt: {refusal.value}"]  # all that a notebook shows


@pytest.mark.parametrize(("number", "parameters"), RECOMMENDED)
def test_what_the_text_recommends_runs_through(number, parameters, monkeypatch):
    run(number, parameters, monkeypatch)
