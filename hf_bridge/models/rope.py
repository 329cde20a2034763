"""Rotary embeddings for positions beyond those a model was trained with, as transformers 5 spells them."""

from typing import Any, NamedTuple

from swift_mega.base.errors import UserError, nearest

WAYS = {
    "linear": "positions are divided by the factor (arXiv 2306.15595)",
    "dynamic": "the base grows with the sequence, beyond the model's own length (NTK-aware)",
    "yarn": "slow frequencies are divided, fast ones stay, scores grow a little (arXiv 2309.00071)",
}
"""`rope_type` → what it does."""


class Scaling(NamedTuple):
    """`yarn:4`: a way, and how many times the length."""

    way: str
    factor: float

    @classmethod
    def parse(cls, text: str) -> "Scaling":
        """What `linear:2` and the like mean.

        Raises:
            UserError: another way, or no factor above 1.
        """
        way, _, factor = text.partition(":")
        if way not in WAYS:
            raise UserError(f"--loading.rope_scaling is {text}.", f"{nearest(way, WAYS)}, as in `yarn:4`.")
        try:
            number = float(factor)
        except ValueError:
            number = 0.0
        if not number > 1 or number == float("inf"):
            raise UserError(f"--loading.rope_scaling is {text}.", f"Behind the colon, a factor above 1: `{way}:2`.")
        return cls(way, number)


def scale_rope(config: Any, text: str) -> None:
    """Change the config of a model so that its positions reach `factor` times as far.

    Of models with a rotary embedding for each kind of layer (Gemma 3, OLMo 3), that of full attention is scaled: the
    others see a window only.

    Args:
        config: of transformers.

    Raises:
        UserError: the model has no rotary embedding, or one that is scaled already.
    """
    scaling = Scaling.parse(text)
    config = config.get_text_config()
    ropes = getattr(config, "rope_parameters", None)
    length = getattr(config, "max_position_embeddings", None)
    if not ropes or length is None:
        raise UserError(f"{config.model_type} has no rotary embedding to scale.", "Leave --loading.rope_scaling out.")
    rope = ropes.get("full_attention") if "rope_theta" not in ropes and "rope_type" not in ropes else ropes
    if rope is None or rope.get("rope_type", "default") != "default":
        raise UserError(
            f"{config.model_type} comes with a rotary embedding that is scaled already: {rope or ropes}.",
            "Leave --loading.rope_scaling out, or change `rope_parameters` in the model's config.json.",
        )
    rope |= {"rope_type": scaling.way, "factor": scaling.factor}
    if scaling.way == "yarn":
        rope["original_max_position_embeddings"] = length
    if scaling.way != "dynamic":  # which computes with the length the model was trained with
        config.max_position_embeddings = int(length * scaling.factor)
