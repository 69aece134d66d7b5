"""Writing: whole or not at all, and nothing of anybody else's is replaced or lost."""

import os
import stat
from pathlib import Path

import pytest

from modegpt.errors import ModegptError
from modegpt.files import write_whole


def test_a_link_stays_and_its_target_is_written(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.json").write_text("old")
    for name, to in (("link", "disk/real.json"), ("dangling", "disk/new.json")):
        (tmp_path / name).symlink_to(to)
        write_whole(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and (tmp_path / to).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "disk")) == ["new.json", "real.json"]


def test_permissions_stay(tmp_path: Path):
    file = tmp_path / "results.json"
    write_whole(file, "new")
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    file.chmod(0o640)
    write_whole(file, "newer")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and file.read_text() == "newer"


def test_a_device_is_written_to_and_stays_one(tmp_path: Path):
    write_whole(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "link").symlink_to("/dev/null")
    write_whole(tmp_path / "link", "gone")
    assert (tmp_path / "link").is_symlink() and not [name for name in os.listdir("/dev") if name.startswith(".null")]


def test_a_pipe_is_written_to(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


def test_hidden_files_beside_it_are_somebody_elses(tmp_path: Path):
    (tmp_path / ".results.json.partial").write_text("mine")
    write_whole(tmp_path / "results.json", "new")
    assert sorted(os.listdir(tmp_path)) == [".results.json.partial", "results.json"]
    assert (tmp_path / ".results.json.partial").read_text() == "mine"


def test_a_long_name_that_the_disk_takes_is_written(tmp_path: Path):
    write_whole(tmp_path / (250 * "n" + ".json"), "new")
    assert os.listdir(tmp_path) == [250 * "n" + ".json"]
    with pytest.raises(ModegptError, match=r"cannot write .*name too long"):
        write_whole(tmp_path / (300 * "n"), "new")


@pytest.mark.parametrize("name", ["folder", "file/below"])
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModegptError, match="cannot write"):
        write_whole(tmp_path / name, "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and (tmp_path / "file").read_text() == "mine"
