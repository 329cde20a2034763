"""A rendered conversation: pieces of text, each with its place in it and its weight in the loss."""

from typing import Literal, NamedTuple

from hf_bridge.data.row import Role

Kind = Role | Literal["template"]
"""Whose text it is: a role's, or the template's own."""


class Segment(NamedTuple):
    """A piece of text whose tokens all weigh the same."""

    text: str
    kind: Kind = "template"
    weight: float = 0.0
    """Of its tokens in the loss; 0: not trained on."""
