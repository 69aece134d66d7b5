import pytest

import modegpt


@pytest.mark.parametrize("name", modegpt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(modegpt, name).__module__.startswith("modegpt")
