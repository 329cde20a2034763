"""CPO and SimPO, which compare with no reference: TRL's CPOTrainer on our examples.

CPO (arXiv 2401.08417, eq. 5): −log σ(β · [log π(y⁺) − log π(y⁻)]) + cross entropy of y⁺.
SimPO (arXiv 2405.14734, eq. 6): −log σ(β · [mean log π(y⁺) − mean log π(y⁻)] − γ), means over the tokens of an answer.
"""

from typing import Any

from trl.experimental.cpo import CPOConfig, CPOTrainer

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.collate import Apart
from hf_bridge.methods.rlhf.given import Given, pad_of, trl_arguments


class Trainer(Given, CPOTrainer):  # type: ignore[misc]
    """See the module."""


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on pairs."""
    # The lengths are right already.
    arguments = trl_arguments(setup, CPOConfig, max_length=setup.config.length.max_length)
    made = Trainer(setup, train, valid, args=arguments, data_collator=Apart(pad_of(setup.tokenizer)))
    made.use_dpo_data_collator = True  # ours makes what theirs does
    return made
