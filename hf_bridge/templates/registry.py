"""Declared templates by name, and whether one fits a tokenizer."""

from typing import Any

from hf_bridge.templates.families import chatml, deepseek, gemma, glm, harmony, llama, mistral, others, phi
from hf_bridge.templates.template import Template
from swift_mega.base.errors import UserError, nearest

TEMPLATES = {
    found.name: found
    for module in (chatml, llama, mistral, gemma, phi, glm, deepseek, harmony, others)
    for found in vars(module).values()
    if isinstance(found, Template)
}

MOST_NAMED = 8
"""Templates that fit; more of them would be no hint."""


def template(name: str) -> Template:
    """The template called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in TEMPLATES:
        raise UserError(f"there is no template `{name}`.", nearest(name, TEMPLATES))
    return TEMPLATES[name]


def fitted(name: str, tokenizer: Any) -> Template:
    """The template `name` with the tokenizer's own tokens in it.

    Raises:
        UserError: there is no such template, or the tokenizer lacks a token that it needs.
    """
    chosen = template(name)
    lacking = _lacking(chosen, tokenizer)
    if lacking:
        fit = [other for other, declared in TEMPLATES.items() if not _lacking(declared, tokenizer)]
        raise UserError(
            f"the template {name} does not fit the tokenizer: it has no token {lacking}.",
            f"These fit: {', '.join(fit[:MOST_NAMED])}{', …' if len(fit) > MOST_NAMED else ''}. "
            "Without `--template`, the model's own chat template is used.",
        )
    return chosen.filled(tokenizer.bos_token or "", tokenizer.eos_token or "")


def fits(name: str, tokenizer: Any) -> bool:
    """Whether the tokenizer has the tokens that the template `name` needs."""
    return _lacking(template(name), tokenizer) is None


def _lacking(declared: Template, tokenizer: Any) -> str | None:
    """The first of the template's stop words that is not one token; `eos` where the tokenizer has none."""
    for word in declared.stop:
        token = tokenizer.eos_token if word == "{eos}" else word
        if token is None:
            return "for the end of a text (eos)"
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            return f"`{token}`"
    return None
