"""Pages are made from results files; what they say is held by tests/test_readme.py."""

import pytest

from modegpt.study import pages as generated


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


def test_paragraphs_are_filled_and_nothing_else_is_touched():
    code, table, title = "```sh\nmodegpt   a   b\n```", "| a | b |\n|---|---|\n| 1   | 2 |", "# A  title"
    text = f"{title}\n\nsome\nwords\n\n{table}\n\n- one\n  and more\n- two\n\n{code}\n"
    filled = f"{title}\n\nsome words\n\n{table}\n\n- one and more\n- two\n\n{code}\n"
    assert generated.wrapped(text) == filled and generated.wrapped(filled) == filled
