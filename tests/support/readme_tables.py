"""The tables of README that follow from the code.

python -m tests.support.readme_tables      # write them into README.md
"""

import re
from pathlib import Path

from converters.family import registry
from tests.model.test_parity import LAYOUTS
from tests.support.tiny import TINY

README = Path(__file__).parents[2] / "README.md"


def families() -> str:
    """Families × layouts: a check mark where tests/model/test_parity.py has the case."""
    layouts = [name.replace("x", "×") for name in LAYOUTS]
    rows = ["| family | architecture | " + " | ".join(layouts) + " |", "|---|---|" + ":-:|" * len(layouts)]
    for architecture, family in registry().items():
        tested = any(model_type == family.name for model_type, _ in TINY.values())
        marks = " | ".join(["✓" if tested else "–"] * len(layouts))
        rows.append(f"| {family.name} | `{architecture}` | {marks} |")
    return "\n".join(rows)


def filled(text: str) -> str:
    """README's text with current tables."""
    block = f"<!-- families:begin -->\n{families()}\n<!-- families:end -->"
    return re.sub(r"<!-- families:begin -->.*?<!-- families:end -->", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
