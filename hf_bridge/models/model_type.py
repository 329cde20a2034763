"""What is known about a kind of model before any of its files are read. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelType:
    """Models of one architecture that speak one template.

    Attributes:
        name: ours.
        model_type: as in config.json; several types of ours may share one.
        template: the declared template that it speaks; None: none of ours, it comes with its own.
        ids: on Hugging Face.
        modelscope: on ModelScope, the same models as far as they are there.
        vocab_sizes: of config.json, where these tell it from others of the same `model_type`; empty: any.
        rope_type: the same of its rotary embedding.
        own_code: transformers has no code for it: it needs `trust_remote_code`.
    """

    name: str
    model_type: str
    template: str | None
    ids: tuple[str, ...]
    modelscope: tuple[str, ...] = ()
    vocab_sizes: tuple[int, ...] = ()
    rope_type: str | None = None
    own_code: bool = False

    def fits(self, config: dict[str, Any]) -> bool:
        """Whether a config.json may be one of this type."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return (
            config.get("model_type") == self.model_type
            and (not self.vocab_sizes or config.get("vocab_size") in self.vocab_sizes)
            and (self.rope_type is None or rope.get("rope_type", rope.get("type", "default")) == self.rope_type)
        )


def sizes(pattern: str, sizes: str) -> tuple[str, ...]:
    """`("Qwen/Qwen3-{}", "4B 8B")` → two ids."""
    return tuple(pattern.format(size) for size in sizes.split())


def of(owner: str, ids: Sequence[str]) -> tuple[str, ...]:
    """The same names with another owner."""
    return tuple(f"{owner}/{one.partition('/')[2]}" for one in ids)
