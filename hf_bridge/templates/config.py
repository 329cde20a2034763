"""How rows become tokens. Torch-free: `--help` reads it."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class TemplateConfig:
    """How rows become tokens."""

    template: str | None = None
    """Name of a declared template, such as `chatml`. null: the model's own chat template."""

    loss_scale: str = "default"
    """What is trained on, and with which weight: `default`, `last_round`, `all`, …, joined by `+`; or a file."""

    agent_format: str | None = None
    """How tools are written, such as `hermes`. null: as the template has them."""

    allow_special: bool = False
    """Special tokens inside messages mean what they say, instead of being text."""
