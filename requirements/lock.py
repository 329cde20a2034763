"""Write lock-py311.txt: what pip installs into an empty environment for pyproject.toml under pins.txt.

usage: python3.11 requirements/lock.py     (or `make lock`)
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
HEADER = """# Written by `make lock` from pyproject.toml and pins.txt; do not edit.
# Python 3.11, Linux: the package, its tests and its tools. Local version suffixes (+cpu) are left off,
# so that each machine takes the build its index offers.
"""


def main() -> None:
    """Install into a throw-away environment, and freeze it."""
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"the lock is for Python 3.11, this is {sys.version.split()[0]}")
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, HERE / "install.py", folder, "-c", HERE / "pins.txt"]
        subprocess.run([*install, *requirements(project, ["test", "dev"])], check=True)
        freeze = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check", "freeze"]
        frozen = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    lines = [name_and_version(line) for line in frozen.splitlines()]
    (HERE / "lock-py311.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} packages in {HERE / 'lock-py311.txt'}")


def requirements(project: dict, extras: list[str]) -> list[str]:
    """The dependencies of `project` with its `extras`, those that name the project itself unfolded."""
    needed = list(project["dependencies"])
    for extra in extras:
        for entry in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", entry)
            needed += requirements(project | {"dependencies": []}, own[1].split(",")) if own else [entry]
    return needed


def name_and_version(line: str) -> str:
    """A line of `pip freeze` as name==version: no file it came from, no local version."""
    if " @ " in line:
        name, _, source = line.partition(" @ ")
        wheel = re.search(r"-(\d[^-+]*)", Path(source).name)
        line = f"{name}=={wheel[1]}" if wheel else sys.exit(f"no version in {line!r}")
    return line.partition("+")[0]


if __name__ == "__main__":
    main()
