"""The tables of README that follow from the code.

python -m tests.support.readme_tables      # write them into README.md
"""

import importlib
import pkgutil
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from converters import families as files
from converters.family import Family
from converters.missing import MISSING
from tests.converters import test_layouts
from tests.model import parity, test_expert_families
from tests.support import listing3, tiny, tiny_dense, tiny_hybrid, tiny_moe

README = Path(__file__).parents[2] / "README.md"

SUITES: tuple[tuple[dict[str, tuple[str, dict[str, Any]]], Collection[str]], ...] = (
    (tiny.TINY, parity.LAYOUTS),
    (tiny_dense.MODELS, parity.LAYOUTS),
    (tiny_moe.MODELS | tiny_hybrid.MODELS, test_expert_families.LAYOUTS),
)
"""Tiny models, and the layouts on which their logits and gradients are held against those of transformers."""


def families() -> str:
    """Families × layouts, converted and trained, where a test has the case; what megatron-core lacks elsewhere."""
    layouts = list(dict.fromkeys(layout for _, tested in SUITES for layout in tested))
    rows = [
        "| models | `model_type` | converts | trains | "
        + " | ".join(name.replace("x", "×") for name in layouts)
        + " |",
        "|---|---|---|---|" + ":-:|" * len(layouts),
    ]
    for name in sorted(module.name for module in pkgutil.iter_modules(files.__path__)):
        if not name.startswith("_"):
            file = importlib.import_module(f"{files.__name__}.{name}")
            tested = _tested(file.FAMILY)
            marks = " | ".join("✓" if layout in tested else "–" for layout in layouts)
            models = (file.__doc__ or "").split(":")[0].strip().rstrip(".")
            rows.append(
                f"| {models} | `{file.FAMILY.name}` | {_converts(file.FAMILY)} | {_trains(file.FAMILY)} | {marks} |"
            )
    return "\n".join(rows)


def _converts(family: Family) -> str:
    """The layouts from and to which a model of the family is converted."""
    layouts = [layout for name, layout in test_layouts.CASES if name == family.name]
    return f"⇄ {' '.join(layouts)}".replace("x", "×") if layouts else "–"


def _tested(family: Family) -> set[str]:
    """The layouts on which a model of the family is compared with transformers."""
    return {layout for models, layouts in SUITES if _of(family, models) for layout in layouts}


def _of(family: Family, models: dict[str, tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The config.json of each of the family's tiny models."""
    own = [changes for model_type, changes in models.values() if model_type == family.name]
    return [{**tiny.COMMON, **changes, "architectures": [family.architectures[0]]} for changes in own]


def _trains(family: Family) -> str:
    converted_only = _of(family, tiny_dense.CONVERTED_ONLY | tiny_moe.CONVERTED_ONLY | tiny_hybrid.CONVERTED_ONLY)
    missing = [name for config in converted_only for name in family.megatron_arguments(config).missing]
    lacks = "; ".join(MISSING[name] for name in dict.fromkeys(missing))
    if not lacks:
        return "yes"
    return f"yes, but not with {lacks}" if _tested(family) else f"no: megatron-core has no {lacks}"


def filled(text: str) -> str:
    """README's text with current tables."""
    text = _with_table(text, "families", families())
    return _with_table(text, "listing3", listing3.table())


def _with_table(text: str, name: str, table: str) -> str:
    block = f"<!-- {name}:begin -->\n{table}\n<!-- {name}:end -->"
    return re.sub(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
