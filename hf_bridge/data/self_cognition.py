"""{{NAME}} and {{AUTHOR}}: data that teaches a model who it is leaves open who that is. Torch-free."""

from typing import Any

import msgspec

from hf_bridge.data.row import Message, Row
from swift_mega.base.errors import UserError
from swift_mega.base.readers import Unreadable

NAME, AUTHOR = "{{NAME}}", "{{AUTHOR}}"
LANGUAGES = ("zh", "en")
"""What the column `tag` of such data says of a row."""


class Identity(msgspec.Struct, frozen=True):
    """Name and author of a model, in Chinese and in English."""

    name: tuple[str, str]
    author: tuple[str, str]


def identity(name: list[str], author: list[str]) -> Identity | None:
    """From what a person gives: one word for both languages, or the Chinese and the English one; None: nothing.

    Raises:
        UserError: one of the two without the other, or more than two words for one.
    """
    if not name and not author:
        return None
    if not (1 <= len(name) <= 2 and 1 <= len(author) <= 2):
        raise UserError(
            f"{len(name)} names and {len(author)} authors of the model.",
            "Give both `--model-name` and `--model-author`: one for all, or the Chinese and the English one.",
        )
    return Identity((name[0], name[-1]), (author[0], author[-1]))


def introduced(row: Row, who: Identity | None, tag: Any) -> Row:
    """The row with name and author of the model in their places; as it is where `who` is None.

    Args:
        tag: the language of the row, `zh` or `en`; None counts as English.

    Raises:
        Unreadable: another tag, in a row that has such a place.
    """
    texts = [message.content for message in row.messages + (row.rejected or ())]
    if who is None or not any(NAME in text or AUTHOR in text for text in texts):
        return row
    if tag not in (None, *LANGUAGES):
        raise Unreadable(f"`tag` is `{tag}`, not one of {', '.join(LANGUAGES)}")
    language = LANGUAGES.index(tag or "en")

    def filled(message: Message) -> Message:
        content = message.content.replace(NAME, who.name[language]).replace(AUTHOR, who.author[language])
        return msgspec.structs.replace(message, content=content)

    rejected = None if row.rejected is None else tuple(map(filled, row.rejected))
    return msgspec.structs.replace(row, messages=tuple(map(filled, row.messages)), rejected=rejected)
