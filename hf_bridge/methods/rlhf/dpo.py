"""DPO, with all its losses, and IPO: TRL's DPOTrainer on our examples.

DPO (arXiv 2305.18290, eq. 7): −log σ(β · [(log π(y⁺) − log π_ref(y⁺)) − (log π(y⁻) − log π_ref(y⁻))]), where log π(y)
is the sum over the tokens of an answer; IPO (arXiv 2310.12036, eq. 17) squares the difference, of means, from 1 ÷ 2β.
"""

from typing import Any

import trl

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.collate import Compared
from hf_bridge.methods.rlhf.given import Given, pad_of, trl_arguments
from hf_bridge.methods.rlhf.precomputed import with_reference
from hf_bridge.methods.rlhf.reference import TUNERS_OFF, reference


class Trainer(Given, trl.DPOTrainer):  # type: ignore[misc]
    """See the module."""


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on pairs."""
    options = setup.config.reference
    # Computed before training, the reference is the policy itself.
    itself = options.reference_free or (options.precompute_ref and options.ref_model is None)
    made = Trainer(
        setup,
        train,
        valid,
        args=trl_arguments(setup, trl.DPOConfig, max_length=None),
        ref_model=TUNERS_OFF if itself else reference(setup),
        data_collator=Compared(pad_of(setup.tokenizer), options.reference_free),
    )
    made.precompute_ref_logps = options.reference_free or options.precompute_ref
    if options.precompute_ref:
        made.train_dataset = with_reference(made, setup, train)
        made.eval_dataset = None if valid is None else with_reference(made, setup, valid)
        made.ref_model = TUNERS_OFF
    return made
