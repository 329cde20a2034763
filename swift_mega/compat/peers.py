"""How torch's communication libraries say that another rank has gone."""

import torch.distributed as dist

SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
)
"""gloo raises a bare RuntimeError: its words are all there is to know it by."""


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because a rank that takes part has ended or hangs."""
    return isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or (
        any(sign in str(error) for sign in SIGNS)
    )
