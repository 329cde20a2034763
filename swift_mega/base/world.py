"""What a launcher says of the job: torchrun, or `launch.local` behind `--nproc`, by the same environment variables."""

import os

from swift_mega.base.errors import UserError

NEEDED = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
"""By which the processes of a job find each other."""


def launched_world_size() -> int | None:
    """Processes of the job of which this is one; None where no launcher has started it.

    Raises:
        UserError: the variables are there in part, or make no sense.
    """
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return None
    way_out = "Start it with torchrun or `--nproc N`, which set them all, or unset them for a single process."
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        there = ", ".join(f"{name}={os.environ[name]}" for name in NEEDED if name in os.environ)
        raise UserError(f"{there} is set, as a launcher does it, but not {', '.join(missing)}.", way_out)
    size, rank = os.environ["WORLD_SIZE"], os.environ["RANK"]
    if not (size.isdigit() and rank.isdigit() and int(rank) < int(size)):
        raise UserError(f"RANK={rank} of WORLD_SIZE={size} is no process of a job.", way_out)
    return int(size)
