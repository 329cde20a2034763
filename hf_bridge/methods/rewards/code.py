"""Whether code that an answer has passes the row's tests, each run in a process of its own. Torch-free.

This runs what a model has written, with the rights of whoever trains it. Limits on time, memory and the size of files
keep accidents small; they are no sandbox against malice: use a container without a network.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile

from hf_bridge.data.row import Row
from hf_bridge.methods.rewards.reward import Answer, OfOne
from swift_mega.base.console import say
from swift_mega.base.errors import UserError

DANGER = "runs what the model writes, with your rights; its limits on time and memory are no sandbox"

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)

_LIMITED = """\
import resource
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
del resource
"""


def code(run: bool = False, seconds: int = 5, megabytes: int = 512, column: str = "tests") -> OfOne:
    """Share of the row's tests that the answer's code passes; None where the row has none.

    The code is the answer's last block in backticks, or all of it. A test is Python that raises where something is
    wrong, such as `assert add(1, 2) == 3`; the column has one as text or a list of them.

    Args:
        run: must be true: this is dangerous, see above.
        seconds: that a test may take.
        megabytes: of address space that it may take.
        column: of `keep_columns`, with the tests.
    """
    if not run:
        raise UserError(f"the reward `code` {DANGER}.", "If you are in a container, write `code:run=true`.")
    say(f"reward `code` {DANGER}")

    def score(answer: Answer, row: Row) -> float | None:
        tests = row.extra.get(column)
        tests = [tests] if isinstance(tests, str) else tests
        if not tests:
            return None
        program = blocks[-1] if (blocks := _BLOCK.findall(answer.text)) else answer.text
        return sum(passes(program, test, seconds, megabytes) for test in tests) / len(tests)

    return score


def passes(program: str, test: str, seconds: int = 5, megabytes: int = 512) -> bool:
    """Whether `program` followed by `test` reaches its end within the limits."""
    end = secrets.token_hex(16)
    limits = _LIMITED.format(memory=megabytes << 20, seconds=seconds)
    source = f"{limits}\n{program}\n{test}\nprint('\\n' + {end!r}, flush=True)\n"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", source],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "HOME": folder},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
        output.seek(0)
        return output.read().decode(errors="replace").rstrip().endswith(end)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
