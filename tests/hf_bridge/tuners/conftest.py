"""One tiny llama a session, copied for every test."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import tiny


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()


@pytest.fixture
def llama(tiny_llama: Any) -> Any:
    return copy.deepcopy(tiny_llama)


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """[2, 16] tokens."""
    tokens: torch.Tensor = tiny.tokens(101)
    return tokens
