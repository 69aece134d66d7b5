import subprocess
import sys

import pytest

import modegpt


@pytest.mark.parametrize("name", modegpt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(modegpt, name).__module__.startswith("modegpt")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = modegpt.nothing


@pytest.mark.parametrize("module", ["modegpt", "modegpt.sources", "modegpt.cli"])
def test_importing_is_cheap(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
