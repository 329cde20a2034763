"""GKD (arXiv 2306.13649, eq. 1 and algorithm 1): TRL's GKDTrainer on our examples.

Generalised Jensen-Shannon divergence, mean over the tokens of answers, which are the student's own in a share λ of
steps: β · KL(teacher ‖ m) + (1 − β) · KL(student ‖ m), m = β · teacher + (1 − β) · student.
"""

from typing import Any

from trl.experimental.gkd import GKDConfig, GKDTrainer

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.collate import Taught
from hf_bridge.methods.rlhf.examples import end_tokens
from hf_bridge.methods.rlhf.given import Given, pad_of, trl_arguments
from hf_bridge.models.load import load_model
from swift_mega.base.errors import UserError


class Trainer(Given, GKDTrainer):  # type: ignore[misc]
    """See the module."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        """None: each batch is a mean of its own. Answers that are drawn have other lengths than those of the data."""


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on conversations.

    Raises:
        UserError: the teacher has another vocabulary.
    """
    teacher = load_model(setup.config.objective.teacher, setup.config.loading).model
    sizes = [model.config.get_text_config().vocab_size for model in (setup.model, teacher)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the teacher knows {sizes[1]:,} tokens and the student {sizes[0]:,}.",
            "A student learns a teacher's probabilities only where both have the same vocabulary.",
        )
    made = Trainer(
        setup,
        train,
        valid,
        args=trl_arguments(setup, GKDConfig, max_length=None),
        teacher_model=teacher.requires_grad_(False).eval(),
        data_collator=Taught(pad_of(setup.tokenizer)),
    )
    made.generation_config.eos_token_id = end_tokens(setup.encoder, setup.tokenizer)
    return made
