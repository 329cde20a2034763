"""`python -m swift_mega …` and `torchrun … -m swift_mega …`: the same as the command `swift-mega`.

`-m` puts the working directory first on the import path, so a user's own folder called `launch/` or
`converters/` would be imported instead of ours. It is taken off again, unless we are run from the
source tree itself, where it is how we were found.
"""

import os
import sys
from pathlib import Path

if not sys.flags.safe_path and Path.cwd() != Path(__file__).parents[1]:
    sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) != os.getcwd()]

from swift_mega.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
