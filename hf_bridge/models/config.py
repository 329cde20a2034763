"""How a model is loaded. Torch-free: `--help` reads it."""

from dataclasses import dataclass
from typing import Literal

Task = Literal["causal_lm", "seq_cls", "token_cls"]
"""The head of a model: next tokens, one label or score for a text, one label for each token."""


@dataclass(kw_only=True)
class LoadingConfig:
    """How the model is loaded."""

    revision: str | None = None
    """Branch, tag or commit of a hub's repository."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the model was saved; on a CPU float32."""

    device_map: str | None = None
    """As in transformers, such as `auto`. null: the one device of this process."""

    attn_implementation: str | None = None
    """`eager`, `sdpa`, `flash_attention_2`, … null: what transformers chooses."""

    rope_scaling: str | None = None
    """`linear:2`, `dynamic:2` or `yarn:4`: positions beyond those the model was trained with."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only where you trust its author."""

    quantization: str | None = None
    """`bnb-nf4`, `bnb-fp4`, `bnb-int8`, `hqq-4`, `torchao-int8`, …: quantise while loading, for QLoRA."""

    qat: str | None = None
    """`torchao-int8-int4`, `bnb-nf4`, `hqq-4`, …: train all weights as they will be once quantised."""

    num_labels: int | None = None
    """Of sequence and token classification. null: of the head that the folder has."""
