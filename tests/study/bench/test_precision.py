"""`modegpt bench precision` compares default products with float64 ones, and would notice a difference."""

import copy

import pytest
import torch

from modegpt.calibrate import collect
from modegpt.evaluate import perplexity
from modegpt.pipeline import compress
from modegpt.study.bench import precision
from modegpt.study.bench.precision import precision_rows
from modegpt.study.results import load

DATA = {"calibration": "noise", "text": "other noise"}


@pytest.fixture(params=["llama", "opt"])
def model(request, tiny_llama, tiny_opt):
    return (tiny_llama if request.param == "llama" else tiny_opt)().requires_grad_(False)


@pytest.fixture
def windows():
    return torch.randint(2, 128, (3, 50), generator=torch.Generator().manual_seed(2))


def table(rows):
    return {(row.what, row.variant): row for row in rows}


@pytest.mark.usefixtures("one_thread")
def test_rows_are_what_they_say(model, tokens, windows):
    dense = copy.deepcopy(model)
    found = table(precision_rows("tiny", model, tokens, windows, ratio=0.3, data=DATA))
    default, exact = collect(dense, tokens), collect(dense, tokens, product_dtype=torch.float64)
    for part in ("mlp", "query", "key", "value"):
        row = found["Gram matrix against float64", part]
        errors = [
            float((getattr(a, part) - getattr(b, part)).norm() / getattr(b, part).norm())
            for a, b in zip(default, exact, strict=True)
        ]
        assert row.value == pytest.approx(sum(errors) / len(errors)) and row.data == "noise"
        assert row.details["largest"] == pytest.approx(max(errors))
        assert 0 < row.value <= row.details["largest"] < 1e-5
    assert found["kept channels in common", ""].value == found["kept dims in common", ""].value == 1
    for variant, statistics in (("float64 products", exact), ("default products", default)):
        small, _ = compress(copy.deepcopy(dense), statistics, ratio=0.3)
        row = found["perplexity", variant]
        assert row.value == pytest.approx(perplexity(small, windows).perplexity, rel=1e-9)
        assert row.details["windows"] == 3 and row.data == "other noise" and row.ratio == 0.3
    assert len(found) == 4 + 2 + 2


@pytest.mark.usefixtures("one_thread")
def test_the_model_is_left_as_it_was(model, tokens, windows):
    before = copy.deepcopy(model.state_dict())
    precision_rows("tiny", model, tokens, windows, ratio=0.3, data=DATA)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("one_thread")
def test_products_that_are_too_rough_show(model, tokens, windows, monkeypatch):
    """As if the default had kept three digits of products and a wrong scale in one layer."""

    def rough(*arguments, **options):
        found = collect(*arguments, **options)
        if not options:
            for statistics in found:
                for part in ("mlp", "query", "key", "value"):
                    matrix = getattr(statistics, part)
                    noise = torch.rand(matrix.shape[-1], generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
                    scale = 0.5 + noise
                    setattr(statistics, part, matrix * scale[:, None] * scale)
        return found

    monkeypatch.setattr(precision, "collect", rough)
    found = table(precision_rows("tiny", model, tokens, windows, ratio=0.3, data=DATA))
    assert all(found["Gram matrix against float64", part].value > 0.05 for part in ("mlp", "query", "key", "value"))
    assert found["kept channels in common", ""].value < 1 and found["kept dims in common", ""].value < 1
    values = [found["perplexity", f"{kind} products"].value for kind in ("float64", "default")]
    assert abs(values[0] / values[1] - 1) > 1e-6


def test_the_command_writes_them(modegpt, dense_folder, text_file, tmp_path, monkeypatch):
    draw = precision_rows
    seen = {}

    def spy(name, model, tokens, held_out, **options):
        seen.update(calibration=tokens.shape, evaluation=held_out.shape, name=name)
        return draw(name, model, tokens, held_out[:, :64], **options)  # 2048 tokens are many for a test

    monkeypatch.setattr("modegpt.study.bench.jobs.precision_rows", spy)
    file = tmp_path / "precision.json"
    sizes = ["--samples", 4, "--length", 32, "--windows", 2, "--device", "cpu"]
    texts = ["--calibration", text_file, "--text", text_file]
    ended = modegpt("bench", "precision", "--model", dense_folder, *texts, "--out", file, *sizes)
    assert ended.code == 0, ended.err
    assert seen == {"calibration": (4, 32), "evaluation": (2, 2048), "name": "dense"}
    results = load(file)
    assert {row.model for row in results.rows} == {"dense"} and all(row.error is None for row in results.rows)
    assert results.settings["samples"] == 4 and results.settings["windows"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "smollm"], "did you mean"),
        (["--model", "opt-mini", "--calibration", "nowhere.txt"], "nowhere.txt"),
        (["--ratio", "-0.1"], "ratio is the share"),
    ],
    ids=str,
)
def test_a_bad_option_is_one_line(modegpt, tmp_path, options, words):
    ended = modegpt("bench", "precision", "--out", tmp_path / "precision.json", "--device", "cpu", *options)
    assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
