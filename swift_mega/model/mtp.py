"""Layers that predict further tokens (MTP) are converted, and not trained: a run goes on without them if told to."""

from pathlib import Path
from typing import Any

from converters import checkpoint
from converters.family import family_of
from converters.stores import safetensors, torch_dist
from swift_mega.base.errors import UserError
from swift_mega.model.config import ModelConfig


def check_mtp(model: ModelConfig, hf_config: dict[str, Any], source: Path) -> None:
    """Whether a run may start with the weights of `source`, a Hugging Face folder or a Megatron checkpoint.

    Raises:
        UserError: there are MTP layers, and nobody said that they may be left out.
    """
    family = family_of(hf_config)
    arguments = family.megatron_arguments(hf_config)
    if not arguments.mtp_num_layers or model.without_mtp or model.weights == "random":
        return
    if checkpoint.is_megatron(source):
        names = set(torch_dist.open_checkpoint(checkpoint.latest(source)).tensors)
    else:
        names = set(safetensors.open_folder(source).tensors)
    if family.as_stored(arguments, names).mtp_num_layers:
        raise UserError(
            f"{source} has layers that predict further tokens (MTP), which training does not carry on.",
            "Set model.without_mtp=true to train the model without them; exports of the run will not have them. "
            "`swift-mega convert` keeps them.",
        )
