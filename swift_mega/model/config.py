"""Which model, from where, in which precision. Torch-free: `--help` and the launcher read it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class ModelConfig:
    """The model and where its weights come from."""

    path: str
    """Hugging Face id, `ms::` ModelScope id, folder in HF format, or a Megatron checkpoint with its `hf/` folder."""

    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the same architecture with fresh weights."""

    tokenizer: str | None = None
    """Folder or id of the tokenizer. null: the model's own."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    trust_remote_code: bool = False
    """Run Python code that comes with the tokenizer. Off unless you know the repository."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations; bf16 keeps fp32 master weights. auto: bf16 on a GPU, fp32 on a CPU."""

    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    """TransformerEngine's layers, or megatron-core's own with torch SDPA attention. auto: the former where it runs."""

    make_vocab_size_divisible_by: int = 128
    """The embedding is padded to a multiple of this times the TP size; padded rows never reach the loss."""

    attention_dropout: float = 0.0
    """Probability of dropping an attention weight."""

    hidden_dropout: float = 0.0
    """Probability of dropping an activation after attention and MLP."""

    moe_aux_loss_coeff: float = 0.0
    """Weight of the loss that spreads tokens evenly over experts, once for each layer. 0: none."""

    moe_router_bias_update_rate: float = 0.0
    """How far a step moves the bias of an expert that got too many or too few tokens, where the model has one."""

    without_mtp: bool = False
    """Train a model that has layers for predicting further tokens (MTP) without them; its exports will lack them."""
