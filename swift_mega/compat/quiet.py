"""Warnings of libraries about themselves: nothing a user can change, and once per rank. Torch-free."""

import logging
import warnings

INSIDE_MEGATRON = (
    # DistributedDataParallel reads `.grad` of expanded parameters to hook their accumulation.
    r"The \.grad attribute of a Tensor that is not a leaf",
    # The collectives of megatron-core's optimizer, by their names before torch 2.13.
    r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    # Loading a torch_dist checkpoint.
    r"`load_state_dict` is deprecated",
    r"Please use DTensor instead",
)

WHEN_IMPORTED = {
    # Its kernels for GPUs, which it tries to load everywhere.
    "torchao": ("Failed to load ",),
    # Two of its enums, which it registers with torch in a way that torch is about to forbid.
    "torch.utils._pytree": ("<enum 'KernelPreference'>", "<enum 'ScaleCalculationMode'>"),
    # Each layer in each forward pass, where activations are not fp16.
    "bitsandbytes.autograd._functions": ("MatMul8bitLt: inputs will be cast",),
    # Advice on `fsdp_config`, which presets write; `--gradient-checkpointing` is one option with and without FSDP2.
    "transformers.training_args": ("When using FSDP, prefer `activation_checkpointing`",),
    # accelerate imports it wherever it is, for runs that have nothing to do with it.
    "DeepSpeed": ("Setting accelerator to CPU",),
}
"""Logger → how its messages begin."""


def hide_inside_megatron() -> None:
    """Leave out the warnings above; every other one is still shown."""
    for message in INSIDE_MEGATRON:
        warnings.filterwarnings("ignore", message=message)


def hide_when_imported() -> None:
    """Leave out what libraries log that PEFT and accelerate import wherever they are installed."""
    for name, openings in WHEN_IMPORTED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(openings))


class _Without(logging.Filter):
    """Lets a message through unless it begins with one of these."""

    def __init__(self, openings: tuple[str, ...]) -> None:
        super().__init__()
        self.openings = openings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.openings)
