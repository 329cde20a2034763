"""The model that a policy is compared with: the same one with its PEFT tuners switched off, or a second one."""

from typing import Any

import peft

from converters.lora_config import MOVE_THE_BASE
from hf_bridge.methods.method import Setup
from hf_bridge.models.load import load_model
from swift_mega.base.errors import UserError

TUNERS_OFF = object()
"""In the place of a reference model: the policy itself, its tuners switched off."""


def reference(setup: Setup) -> Any:
    """`TUNERS_OFF`, or a model that is not trained.

    Raises:
        UserError: it is to follow the policy, and is no model of its own.
    """
    chosen = setup.config.reference.ref_model
    if chosen is None and leaves_base_alone(setup.model):
        if setup.config.reference.ref_sync_steps is not None:
            raise UserError(
                "`--reference.ref_sync_steps`: with a tuner of PEFT the reference is the model without it.",
                "Leave it out, or name a `--reference.ref_model` of its own.",
            )
        return TUNERS_OFF
    model = load_model(chosen or setup.config.model, setup.config.loading).model
    return model.requires_grad_(False).eval()


def leaves_base_alone(model: Any) -> bool:
    """Whether the model without its PEFT tuners is, and stays, what it was before them."""
    if not isinstance(model, peft.PeftModel):
        return False
    names = set(model.peft_config)
    beginnings = [str(getattr(config, "init_lora_weights", "")).lower() for config in model.peft_config.values()]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return not any(text.startswith(MOVE_THE_BASE) for text in beginnings) and all(
        names & set(name.split(".")) for name in trained
    )
