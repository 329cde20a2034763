"""What `quantization_config` of a config.json says. It is about the files only: the model is the same without it."""

from dataclasses import dataclass
from typing import Any

from converters.config_table import Config, MegatronArguments
from converters.tensors import WEIGHT_DTYPES
from swift_mega.base.errors import UserError

FIELD = "quantization_config"
METHODS = {
    "fp8": "float8_e4m3fn with a scale for each block",
    "mxfp4": "four bits, with an exponent for every 32",
}
"""`quant_method` → how the numbers of quantised weights are stored."""
BLOCK = (128, 128)
"""Of fp8, where the config does not say."""


@dataclass(frozen=True)
class Quantisation:
    """A folder's quantised weights."""

    method: str
    """A key of `METHODS`."""
    block: tuple[int, int] | None
    """Rows and columns that share a scale (fp8). None: a tensor has one scale."""
    dtype: str
    """That transformers gives dequantised fp8: of the model."""


def quantisation(config: Config) -> Quantisation | None:
    """What a config says; None: nothing is quantised.

    Raises:
        UserError: a method that cannot be read.
    """
    said = config.get(FIELD)
    if said is None:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method not in METHODS:
        raise UserError(
            f"config.json: `{FIELD}` says quant_method {method!r}, which cannot be read.",
            f"Weights that can be: plain ones, {', '.join(f'{name} ({how})' for name, how in METHODS.items())}. "
            "Take the unquantised model, or save it dequantised.",
        )
    dtype = config.get("dtype") or config.get("torch_dtype")
    return Quantisation(method, _block(said), dtype if dtype in WEIGHT_DTYPES else "bfloat16")


def _block(said: dict[str, Any]) -> tuple[int, int] | None:
    block = said.get("weight_block_size", BLOCK)
    if block is None:
        return None
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise UserError(
            f"config.json: `{FIELD}.weight_block_size` is {block!r}.", "It is two positive numbers, or null."
        )
    return block[0], block[1]


def unquantised(config: Config) -> Config:
    """The config of the same model with plain weights."""
    return {name: value for name, value in config.items() if name != FIELD}


@dataclass(frozen=True)
class Quantised:
    """The row of the field: it says nothing to Megatron, but must be something that can be read."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (FIELD,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        quantisation(config)
        return {}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {}
