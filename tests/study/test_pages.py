"""Pages are made from results files; what they say is held by tests/test_readme.py."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from modegpt import ModegptError
from modegpt.study import pages as generated
from modegpt.study.results import Results, Row, committed, joined


@pytest.mark.slow
def test_a_stale_page_is_found_and_written_again(tmp_path):
    written = generated.refresh_pages(tmp_path)
    assert {str(file.relative_to(tmp_path)) for file in written} == {name for name, _ in generated.pages()}
    page = tmp_path / "README.md"
    kept = page.read_text()
    page.write_text(kept.replace("42.55", "41.55"))
    assert generated.refresh_pages(tmp_path) == [page]
    assert page.read_text() == kept and generated.refresh_pages(tmp_path) == []


def test_what_an_expression_asks_for_is_there_once():
    with pytest.raises(LookupError, match="0 rows"):
        generated.value("smollm2-135m.methods", method="nobody")
    with pytest.raises(LookupError, match=r"\d+ rows"):
        generated.value("smollm2-135m.methods", method="modegpt")


def test_a_lead_between_two_ruined_models_is_in_brackets():
    rows = [
        Row(model="m", data="t", seed=seed, what="accuracy", unit="share", method=method, value=value, variant=variant)
        for seed in (0, 1)
        for variant, pair in (("33% of the ranks", (0.2, 0.1)), ("70% of the ranks", (0.6, 0.1)))
        for method, value in zip(("fwsvd", "svd"), pair, strict=True)
    ]
    results = Results.now("fwsvd.vary", "words", {"m": {"t": {"majority": 0.3}}}, rows, "cpu", "")
    for share, words in (("33", "(+10.0 ± 0.0)"), ("70", "+50.0 ± 0.0")):
        assert generated.lead_of(results, "m", share, ("fwsvd", ""), ("svd", "")) == words


def test_seconds_that_rows_share_count_once_and_each_gpu_counts():
    same = {"model": "m", "what": "perplexity", "unit": "", "value": 9.0, "method": "svd"}
    rows = [Row(**same, ratio=ratio, details={"seconds": {"measure": 100.0, "evaluate": 5.0}}) for ratio in (0.1, 0.2)]
    timed = {"model": "m", "what": "compression", "unit": "s", "method": "modegpt"}
    rows += [Row(**timed, value=20.0, details={"peak_bytes": [1, 1]}), Row(**timed, value=7.0, variant="one GPU")]
    results = Results.now("compare", "words", {}, rows, "cpu", "")
    assert generated.seconds(results) == 100 + 2 * 5 + 2 * 20 + 7
    assert generated.took(results) == "2.6 min"
    assert generated.took(Results.now("compare", "words", {}, [], "cpu", "")) == "not recorded"
    streamed = Row(**timed, value=20.0, details={"seconds": 20.0, "ranks": [{}, {}]})
    assert generated.seconds(Results.now("bench.stream", "words", {}, [streamed], "cpu", "")) == 2 * 20


def test_paragraphs_are_filled_and_nothing_else_is_touched():
    code, table, title = "```sh\nmodegpt   a   b\n```", "| a | b |\n|---|---|\n| 1   | 2 |", "# A  title"
    text = f"{title}\n\nsome\nwords\n\n{table}\n\n- one\n  and more\n- two\n\n{code}\n"
    filled = f"{title}\n\nsome words\n\n{table}\n\n- one and more\n- two\n\n{code}\n"
    assert generated.wrapped(text) == filled and generated.wrapped(filled) == filled


def test_the_first_picture_has_every_method_of_both_files(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(generated, "keep", lambda figure, file: figures.append(figure))
    assert generated.draw_first_picture(tmp_path / "first.png") == tmp_path / "first.png"
    lines = {line.get_label(): list(line.get_ydata()) for line in figures[0].axes[0].lines}
    both = [committed(f"smollm2-135m.methods.{name}wikitext2.h100") for name in ("", "plus.")]
    for results, method, label in zip(
        both, ("modegpt", "modegpt-plus"), ("MoDeGPT", "modegpt-plus (ours)"), strict=True
    ):
        assert lines[label][1:] == [row.value for row in results.find(method=method)]
    assert len([label for label in lines if not label.startswith("_")]) == 9
    assert generated.FIRST_PICTURE.exists()
    plt.close("all")


def test_results_of_other_settings_or_hardware_are_not_joined():
    first, second = (committed(f"smollm2-135m.methods.{name}wikitext2.h100") for name in ("", "plus."))
    for other in (replace(second, settings=second.settings | {"samples": 64}), replace(second, device="cpu: one")):
        with pytest.raises(ModegptError, match="same settings and hardware"):
            joined(first, other)
    assert len(joined(first, second).find(method="modegpt")) == 5
