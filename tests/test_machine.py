"""Memory that a process may take, on a host and in a container."""

import pytest

from modegpt import machine


@pytest.mark.parametrize(("limit", "left"), [("5000", 3000), ("max", None), (None, None)])
def test_a_container_may_take_less_than_is_free(tmp_path, monkeypatch, limit, left):
    free = machine.free_host_bytes()
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("2000\n")
    found = machine.free_host_bytes()
    assert found == left if left else found > free / 2 > 5000
