"""Reward models: TRL's RewardTrainer on our examples.

Bradley-Terry with margin (arXiv 2307.09288, eq. 2): −log σ(r(y⁺) − r(y⁻) − margin), and to keep rewards about zero
c · (r(y⁺) + r(y⁻))² (arXiv 2312.09244, §3.2).
"""

from typing import Any

import trl

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.collate import Scored
from hf_bridge.methods.rlhf.given import Given, pad_of, trl_arguments


class Trainer(Given, trl.RewardTrainer):  # type: ignore[misc]
    """See the module."""


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on pairs."""
    arguments = trl_arguments(setup, trl.RewardConfig, max_length=None)
    return Trainer(setup, train, valid, args=arguments, data_collator=Scored(pad_of(setup.tokenizer)))
