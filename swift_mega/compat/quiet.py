"""Warnings of torch about calls inside megatron-core: nothing a user can change, and once per rank."""

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


def hide_inside_megatron() -> None:
    """Leave out the warnings above; every other one is still shown."""
    for message in INSIDE_MEGATRON:
        warnings.filterwarnings("ignore", message=message)
