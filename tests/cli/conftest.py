"""What the tests of the verbs share: one compression, other text to evaluate on, JSON as its standard has it."""

import json
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def strict_json():
    """Reads JSON as its standard has it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"it holds {constant}")

    return lambda path: json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="session")
def finish():
    """Waits for a process."""

    def wait(process):
        out, err = process.communicate(timeout=120)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return wait


@pytest.fixture(scope="session")
def evaluation_file(tmp_path_factory, text_file):
    """Other text than the calibration's."""
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text(text_file.read_text()[::-1])
    return path


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def run(request, modegpt, strict_json, dense_folder, text_file, tmp_path_factory):
    """One compression: its folder, its JSON, what it printed."""
    folder = tmp_path_factory.mktemp(request.param) / "small"
    file = folder.with_name("compress.json")
    arguments = ["compress", dense_folder, "--ratio", 0.3, "--out", folder, "--json", file, "--multiple-of", 2]
    arguments += [
        "--calibration",
        text_file,
        "--dtype",
        request.param,
        "--seed",
        3,
        "--samples",
        16,
        "--seq-len",
        64,
    ]  # ten tokens a channel or more: no warning
    printed = modegpt(*arguments)
    assert printed.code == 0, printed.err
    words = [str(word) for word in arguments]
    return SimpleNamespace(folder=folder, result=strict_json(file), printed=printed, words=words, dtype=request.param)
