"""KTO (arXiv 2402.01306, eq. 8): TRL's KTOTrainer on our examples.

λ · (1 − σ(β · ±(log π(y) − log π_ref(y) − z))), + for wanted and − for unwanted answers, each with its λ; z ≥ 0 is the
divergence from the reference, estimated on answers to other questions of the batch.
"""

from typing import Any

import trl

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.collate import Unpaired
from hf_bridge.methods.rlhf.given import Given, pad_of, trl_arguments
from hf_bridge.methods.rlhf.reference import reference
from swift_mega.base.errors import UserError


class Trainer(Given, trl.KTOTrainer):  # type: ignore[misc]
    """See the module."""


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on labelled answers.

    Raises:
        UserError: batches of one answer, of which none has another question's answer.
    """
    arguments = trl_arguments(setup, trl.KTOConfig, max_length=None, train_sampling_strategy="sequential")
    divergence = arguments.loss_type == "kto"
    sizes = {"train": arguments.per_device_train_batch_size, "eval": arguments.per_device_eval_batch_size}
    for name, size in sizes.items():
        if divergence and size < 2 and (name == "train" or valid is not None):
            raise UserError(
                f"KTO compares with other answers of a batch, and `per_device_{name}_batch_size` is {size}.",
                "Make it at least 2, better 4 or more; or choose `--loss-type apo_zero_unpaired`, which compares none.",
            )
    collate = Unpaired(pad_of(setup.tokenizer), divergence, setup.config.length.max_length)
    made = Trainer(setup, train, valid, args=arguments, ref_model=reference(setup), data_collator=collate)
    # TRL pairs answers by their order on disk and so insists on it; here batches are paired as they come.
    made.args.train_sampling_strategy = setup.arguments.get("train_sampling_strategy", "random")
    return made
