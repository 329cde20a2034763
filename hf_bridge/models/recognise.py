"""What a model is, and which template its chats are written in."""

from dataclasses import dataclass
from typing import Any

from hf_bridge.models import registry
from hf_bridge.models.model_type import ModelType
from hf_bridge.templates.registry import TEMPLATES, fits
from swift_mega.base.console import say
from swift_mega.base.errors import UserError


@dataclass(frozen=True)
class Recognised:
    """What a model may be.

    Attributes:
        candidates: one where id, config or tokenizer tell which; none where nobody registered its like.
        own: whether the tokenizer has a chat template.
    """

    candidates: tuple[ModelType, ...]
    own: bool

    @property
    def type(self) -> ModelType | None:
        """The one that it is."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    @property
    def templates(self) -> list[str]:
        """Declared templates that it may speak."""
        return list(dict.fromkeys(found.template for found in self.candidates if found.template is not None))

    def template(self, asked: str | None) -> str | None:
        """The declared template to use; None: the tokenizer's own chat template.

        Args:
            asked: by the user; it is taken as it is.

        Raises:
            UserError: none was asked for, the tokenizer has none, and not exactly one is registered.
        """
        if asked is not None or self.own:
            return asked
        if len(self.templates) == 1:
            say(f"The tokenizer has no chat template: `{self.templates[0]}` is taken, which models of its type speak.")
            return self.templates[0]
        like = (
            f"models of its type speak {', '.join(self.templates)}" if self.templates else "none is registered for it"
        )
        raise UserError(
            f"the tokenizer has no chat template, and {like}.",
            f"Name one: `--template {self.templates[0] if self.templates else 'chatml'}`, or `plain` for text. "
            f"There are {', '.join(TEMPLATES)}.",
        )


def recognise(name: str, config: dict[str, Any], tokenizer: Any) -> Recognised:
    """What the model called `name` is: by its id, else by its config.json, and where that fits several, its tokenizer.

    Args:
        name: id or folder.
        config: what config.json says.
        tokenizer: of transformers.
    """
    by_id = registry.of_id(name)
    found = [by_id] if by_id else registry.of_config(config)
    own = bool(tokenizer.chat_template)
    if len(found) > 1:
        # One that none of our templates is for comes with its own.
        found = [one for one in found if (own if one.template is None else fits(one.template, tokenizer))]
        # A template whose own tokens this tokenizer has tells more than one that ends with any tokenizer's `eos`.
        marked = [one for one in found if one.template and "{eos}" not in TEMPLATES[one.template].stop]
        found = [one for one in found if one in marked or one.template is None] if marked else found
    return Recognised(tuple(found), own)
