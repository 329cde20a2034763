"""How a command ends when something goes wrong: the right exit code, and one message for all ranks.

A user's mistake is printed alone and exits with 2; Ctrl-C exits with 130; everything else is a bug
and keeps its traceback. When several ranks fail of one cause, or because another rank has failed, one
rank per node speaks: rank 0 if it failed too. The ranks agree by creating a file in a folder that
their launcher made for them.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swift_mega.base.console import is_main
from swift_mega.base.errors import PeerLost, UserError

REPORT_FOLDER = "SWIFT_MEGA_REPORT_FOLDER"
"""Environment variable by which `launch.local` names that folder."""

REPORTED = "reported"

FOLLOW_UP_S = 1.0
"""Seconds a rank waits before it speaks, so that the one that knows the cause, or the launcher, is first."""

PEER_LOST_S = 3.0
"""The same for a rank that only knows that another has gone: longer, as that one may be a follower itself."""


@dataclass
class Outcome:
    """What `explained` hands out: the exit code of the process."""

    exit_code: int = 0


@contextmanager
def explained() -> Iterator[Outcome]:
    """Run the body; an exception in it is explained on stderr and becomes `outcome.exit_code`."""
    outcome = Outcome()
    try:
        yield outcome
    except UserError as error:
        outcome.exit_code = UserError.exit_code
        if not is_main():
            time.sleep(FOLLOW_UP_S)
        if claim_report(report_folder(), outcome.exit_code):
            print(error, file=sys.stderr, flush=True)
    except PeerLost as error:
        outcome.exit_code = 1
        time.sleep(PEER_LOST_S)
        if claim_report(report_folder(), outcome.exit_code):
            print(error, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        outcome.exit_code = 130
        if claim_report(report_folder(), outcome.exit_code):
            print("Interrupted.", file=sys.stderr, flush=True)
    except BrokenPipeError:
        # The reader of our output (`| head`) has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.exit_code = 141
    except (SystemExit, GeneratorExit):
        raise
    except BaseException:  # noqa: BLE001  the last stop before the interpreter; nothing is swallowed, it is printed
        # Not `Exception`: torch's CheckpointException is none.
        outcome.exit_code = 1
        if report_folder() is not None:
            # A lost peer shows here as a failed collective; who lost it says so within this second.
            time.sleep(FOLLOW_UP_S)
        if claim_report(report_folder(), outcome.exit_code):
            traceback.print_exc()


def claim_report(folder: Path | None, exit_code: int) -> bool:
    """True for the first caller that shares `folder` with others, and always without one."""
    if folder is None:
        return True
    try:
        with (folder / REPORTED).open("x", encoding="utf-8") as file:
            file.write(str(exit_code))
    except FileExistsError:
        return False
    return True


def reported_exit_code(folder: Path) -> int | None:
    """Exit code of the one that spoke: the rank that knew the cause, while others fail of losing it."""
    file = folder / REPORTED
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return int(text) if text else None


def report_folder() -> Path | None:
    """A folder that the ranks of this node share for this start, or None without a launcher."""
    if REPORT_FOLDER in os.environ:
        return Path(os.environ[REPORT_FOLDER])
    # torchrun: <log dir>/<run>/attempt_<n>/<local rank>/error.json
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(error_file).parents[1] if error_file else None
