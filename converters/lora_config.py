"""PEFT's adapter_config.json: the scale of each adapted layer."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.stores.files import read_json
from swift_mega.base.errors import UserError

CONFIG = "adapter_config.json"
DEFAULTS = {"r": 8, "lora_alpha": 8}
"""PEFT's, where its file does not say."""
NOT_MERGEABLE = {
    "alora_invocation_tokens": "such an adapter works from a certain token on, so that no one weight does the same",
    "lora_bias": "it adds to biases, too, which are not merged",
    "use_qalora": "its factors see averages of the input",
    "use_bdlora": "its factors are blocks of larger ones",
    "layer_replication": "it makes layers that the base does not have",
    "fan_in_fan_out": "its layers have their weights transposed",
}
"""Options of PEFT that make LoRA something else than a change of weights by s·B·A."""
MOVE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""How values of `init_lora_weights` begin that change the base's weights: W + s·B·A is the model only with the W that
PEFT makes when it begins, not with the base's."""


class LoraConfig:
    """What a folder's adapter_config.json says.

    Args:
        folder: that has it.
        content: instead of the file's.

    Raises:
        UserError: it is not of LoRA, or its ranks and alphas are no numbers.
    """

    def __init__(self, folder: Path, content: dict[str, Any] | None = None) -> None:
        self.content = read_json(folder / CONFIG) if content is None else content
        if (kind := self.content.get("peft_type")) != "LORA":
            raise UserError(
                f"{folder / CONFIG} is of peft_type {kind!r}.",
                "LORA converts, with use_rslora and use_dora too; merge others into their base with PEFT.",
            )
        self._folder = folder
        for patterns, option in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            self._check_numbers(patterns, option)

    @property
    def base(self) -> str:
        """The model that is adapted: a folder or an id. Empty: it is not named."""
        return self.content.get("base_model_name_or_path") or ""

    @property
    def revision(self) -> str | None:
        """Of the base model."""
        return self.content.get("revision")

    @property
    def parameters(self) -> list[str]:
        """The ends of the names of adapted parameters that are no layers of their own: experts in one tensor."""
        return self.content.get("target_parameters") or []

    def scale(self, module: str, rank: int) -> float:
        """What the product of a layer's factors is multiplied with: alpha / r, or alpha / √r with rsLoRA.

        Args:
            module: the layer's name in the Hugging Face model.
            rank: of its factors.
        """
        alpha = float(self._of("alpha_pattern", "lora_alpha", module))
        return alpha / (math.sqrt(rank) if self.content.get("use_rslora") else rank)

    def check_rank(self, module: str, rows: int, together: int = 1) -> None:
        """Whether a layer's factors are of the rank that PEFT would give it.

        Args:
            module: the layer's name in the Hugging Face model.
            rows: of `lora_A`, or columns of `lora_B`.
            together: experts whose factors are in one tensor.

        Raises:
            UserError: they are of another.
        """
        if rows != (said := self._of("rank_pattern", "r", module)) * together:
            raise UserError(
                f"{self._folder / CONFIG} gives {module} the rank {said}; its factors have {rows / together:g}.",
                "The two files are of different adapters, or r and rank_pattern were changed: have them say what the "
                "factors were trained with.",
            )

    def check_base_stays(self) -> None:
        """Raises:
        UserError: the factors belong to other weights than the base's.
        """
        begun = self.content.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(MOVE_THE_BASE):
            raise UserError(
                f"{self._folder / CONFIG} says init_lora_weights {begun!r}: PEFT has changed the base's weights for "
                "it, and these factors belong to the changed ones.",
                "With them in memory, PEFT's save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START) "
                "saves PiSSA, OLoRA, CorDA and LoRA-GA as plain LoRA of the base (START: the adapter as it was before "
                "training); of LoftQ, save the merge_and_unload() that PEFT makes.",
            )

    def check_mergeable(self) -> None:
        """Raises:
        UserError: the change of a weight is not the same for every token, or not s·B·A.
        """
        self.check_base_stays()
        for option, why in NOT_MERGEABLE.items():
            if self.content.get(option):
                raise UserError(
                    f"{self._folder / CONFIG} says {option}: {why}.", "Keep base and adapter apart, or use PEFT."
                )

    def with_layers(self, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> "LoraConfig":
        """The same for adapters that have these ranks and alphas, by the names of their layers."""
        leaves = {name.rpartition(".")[2] for name in ranks}
        named = self.content.get("target_modules")
        content = {
            **self.content,
            # A pattern that was there matches what it matched; the first match counts.
            "rank_pattern": {**_exactly(ranks), **(self.content.get("rank_pattern") or {})},
            "alpha_pattern": {**_exactly(alphas), **(self.content.get("alpha_pattern") or {})},
        }
        if isinstance(named, list):
            content["target_modules"] = sorted({*named, *leaves})
        return LoraConfig(self._folder, content)

    def _of(self, patterns: str, option: str, module: str) -> Any:
        """What the first pattern that is the end of a module's name says, or else the option for all."""
        found = (value for end, value in (self.content.get(patterns) or {}).items() if _ends_in(end).match(module))
        return next(found, self.content.get(option, DEFAULTS[option]))

    def _check_numbers(self, patterns: str, option: str) -> None:
        own = self.content.get(patterns) or {}
        if not isinstance(own, dict):
            raise self._wrong(patterns, own, "an object of names of layers, or the ends of names, and numbers")
        for pattern in own:
            try:
                _ends_in(pattern)
            except re.error as error:
                wanted = f"the ends of names of layers as regular expressions ({error})"
                raise self._wrong(patterns, pattern, wanted) from None
        whole = option == "r"
        wanted = "a whole number from 1 on" if whole else "a finite number"
        said = {option: self.content.get(option, DEFAULTS[option])}
        for where, value in (said | {f"{patterns} of {end!r}": value for end, value in own.items()}).items():
            fits = type(value) is int and value > 0 if whole else type(value) in (int, float) and math.isfinite(value)
            if not fits:
                raise self._wrong(where, value, wanted)

    def _wrong(self, option: str, value: Any, wanted: str) -> UserError:
        return UserError(
            f"{self._folder / CONFIG} says {option}: {json.dumps(value)}.",
            f"It should be {wanted}; PEFT's save_pretrained writes such a file.",
        )


def _ends_in(pattern: str) -> re.Pattern[str]:
    """Of the names of modules, as PEFT looks them up."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _exactly(values: Mapping[str, Any]) -> dict[str, Any]:
    return {re.escape(name): value for name, value in values.items()}
