"""A checkout for students: the kit with the exercises as its notebooks, without solutions, tests and question bank."""

import re
import shutil
from pathlib import Path

from modegpt.course.commands import chosen
from modegpt.course.files import read, sheet, without_solutions, write
from modegpt.errors import ModegptError
from modegpt.files import beside

# What travels is named, so that a new file stays behind until someone decides.
TRAVELS = (
    *("modegpt", "docs", "examples", "figures", "notebooks/profiles.yml", "Makefile", "README.md", "CHANGELOG.md"),
    *("CITATION.cff", "CONTRIBUTING.md", "LICENSE", "NOTICE", "constraints.txt", "environment.yml", "pyproject.toml"),
    *(".binder", ".devcontainer", ".gitignore"),
)
STAYS = ("__pycache__", ".*", "api", "build", "reproduction", "teaching*", "templates")
ASSISTANTS = Path("docs") / "teaching" / "AGENTS.students.md"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def handout(target: Path, folder: Path) -> None:
    """Write the students' checkout to `target`, whole or not at all.

    Parameters
    ----------
    target: a folder that does not exist yet
    folder: the solved notebooks; the repository is the folder around them

    Raises ModegptError if the target exists, cannot be written, or the repository lacks a part.
    """
    root, partial = folder.resolve().parent, beside(target.absolute(), "partial")
    if target.exists():
        raise ModegptError(f"{target} exists: give the handout a folder of its own")
    paths = chosen(folder, None)
    if missing := [name for name in (*TRAVELS, str(ASSISTANTS)) if not (root / name).exists()]:
        raise ModegptError(f"{root} has no {missing[0]}: a handout is made where the whole repository is")
    try:
        (partial / "notebooks").mkdir(parents=True)
        for name in TRAVELS:
            if (root / name).is_dir():
                shutil.copytree(root / name, partial / name, ignore=shutil.ignore_patterns(*STAYS))
            else:
                shutil.copy(root / name, partial / name)
        for path in paths:
            write(without_solutions(read(path)), partial / "notebooks" / path.name)
        (partial / "notebooks" / "README.md").write_text(sheet(paths), encoding="utf-8")
        shutil.copy(root / ASSISTANTS, partial / "AGENTS.md")
        for page in partial.rglob("*.md"):
            _unlink(page)
        partial.rename(target)
    except OSError as error:
        raise ModegptError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unlink(page: Path) -> None:
    """Links to what stayed behind become plain text."""

    def kept(link: re.Match) -> str:
        there = link[2].startswith(("http", "mailto:")) or (page.parent / link[2]).exists()
        return link[0] if there else link[1]

    page.write_text(LINK.sub(kept, page.read_text(encoding="utf-8")), encoding="utf-8")
