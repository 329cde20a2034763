"""ORPO (arXiv 2403.07691, eq. 6 and 7): TRL's ORPOTrainer on our examples.

cross entropy of question and y⁺ − β · log σ(log odds(y⁺) − log odds(y⁻)), odds(y) = p ÷ (1 − p) with p the geometric
mean of the probabilities of y's tokens. As in the authors' code the cross entropy covers the question, too.
"""

from typing import Any

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.collate import Apart
from hf_bridge.methods.rlhf.given import Given, pad_of, trl_arguments


class Trainer(Given, ORPOTrainer):  # type: ignore[misc]
    """See the module."""


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on pairs."""
    arguments = trl_arguments(setup, ORPOConfig, max_length=setup.config.length.max_length)
    made = Trainer(setup, train, valid, args=arguments, data_collator=Apart(pad_of(setup.tokenizer)))
    made.use_dpo_data_collator = True  # ours makes what theirs does
    return made
