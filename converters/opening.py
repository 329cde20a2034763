"""Whatever lies in a folder, opened: a model or an adapter, of any format."""

from pathlib import Path

from converters.adapters import is_megatron_adapter, is_peft, open_megatron_adapter, open_peft
from converters.fused_lora import Form
from converters.source import Source, open_model


def open_source(
    path: Path,
    vocab_divisible_by: int = 128,
    target_tp: int = 1,
    allow_unmapped: bool = True,
    config: Path | None = None,
    lora: Form = "apart",
) -> Source:
    """Look at what lies in a folder and account for every tensor of it.

    Args:
        path: a model or an adapter of any format.
        vocab_divisible_by: the embedding of a Hugging Face folder is padded to a multiple of it and of `target_tp`.
        target_tp: tensor-parallel size.
        allow_unmapped: set tensors aside that Megatron has no place for.
        config: a folder with config.json and tokenizer, where the checkpoint has none; of an adapter, its base's.
        lora: form in which Megatron is to have a PEFT adapter.

    Raises:
        UserError: nothing that is known, damaged, or tensors that are missing or have no place.
    """
    if is_megatron_adapter(path, config):
        return open_megatron_adapter(path, config)
    if is_peft(path):
        return open_peft(path, config, vocab_divisible_by, target_tp, allow_unmapped, lora)
    return open_model(path, vocab_divisible_by, target_tp, allow_unmapped, config)
