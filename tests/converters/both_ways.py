"""A config.json through Megatron's arguments and back."""

import json
from pathlib import Path

import pytest
import transformers

from converters import checkpoint
from converters.family import family_of
from swift_mega.base.errors import UserError


def assert_config_goes_both_ways(folder: Path) -> None:
    """With the file of the source beside, and from the arguments alone, which transformers must read likewise."""
    config = checkpoint.read_config(folder)
    family = family_of(config)
    there = family.megatron_arguments(config)
    assert family.hf_config(there, config) == config
    if there.missing:
        with pytest.raises(UserError, match="cannot be written as this architecture"):
            family.hf_config(there)
        return
    alone = family.hf_config(there)
    assert family.megatron_arguments(alone) == there
    if family.name in transformers.CONFIG_MAPPING:
        # transformers must read what was written as the same model.
        ours = transformers.CONFIG_MAPPING[family.name](**alone)
        assert family.megatron_arguments(json.loads(ours.to_json_string(use_diff=False))) == there
