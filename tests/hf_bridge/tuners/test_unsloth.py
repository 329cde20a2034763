"""The optional backend, where it is not there."""

import importlib.util

import pytest
from torch import nn

from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="unsloth is installed")
def test_it_is_refused_with_the_install_line() -> None:
    with pytest.raises(UserError, match="pip install unsloth"):
        own.attach(nn.Linear(2, 2), "unsloth")
