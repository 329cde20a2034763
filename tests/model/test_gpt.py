"""The padded vocabulary, the rotary embedding, the norm: what our model adds to megatron's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from converters import checkpoint
from swift_mega.model import gpt
from swift_mega.model.logits import transformers_logits
from tests.model import cases
from tests.support import tiny
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]
TP2 = {"tensor_model_parallel_size": 2}


def tokens_of(folder: Path) -> Tensor:
    tokens: Tensor = tiny.tokens(checkpoint.read_config(folder)["vocab_size"])
    return tokens


def transformers_losses(folder: Path) -> Tensor:
    """[b, s], each token predicting the next; the last one the first, as in the cases."""
    tokens = tokens_of(folder)
    logits = transformers_logits(folder, tokens)
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens.roll(-1, dims=1), reduction="none")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
@pytest.mark.parametrize("divisible_by", [1, 128])
def test_losses_are_transformers_whatever_the_padding(
    name: str, world_size: int, divisible_by: int, tiny_model: TinyModel, distributed: Workers
) -> None:
    """101 and 151 tokens, padded to 102, 152, 128 or 256; on two ranks a whole half can be padding."""
    folder = tiny_model(name)
    layout = TP2 if world_size == 2 else {}
    results = distributed(
        cases.token_losses, world_size, folder, layout, tokens_of(folder), make_vocab_size_divisible_by=divisible_by
    )
    for losses, _ in results:
        torch.testing.assert_close(losses, transformers_losses(folder), rtol=1e-5, atol=1e-5)


def test_padding_rows_get_exactly_no_gradient(tiny_model: TinyModel, distributed: Workers) -> None:
    folder = tiny_model("qwen2-tied")
    tokens = tokens_of(folder)
    ((_, padded),) = distributed(cases.token_losses, 1, folder, {}, tokens, make_vocab_size_divisible_by=128)
    ((_, unpadded),) = distributed(cases.token_losses, 1, folder, {}, tokens, make_vocab_size_divisible_by=1)
    assert padded.shape[0] == 256 and unpadded.shape[0] == 151
    assert torch.equal(padded[151:], torch.zeros_like(padded[151:]))
    torch.testing.assert_close(padded[:151], unpadded, rtol=1e-5, atol=1e-6)


def test_unmasked_padding_would_be_found(tiny_model: TinyModel, distributed: Workers) -> None:
    """A planted fault: without the mask the loss depends on the padding."""
    folder = tiny_model("llama")
    ((losses, _),) = distributed(cases.token_losses_unmasked, 1, folder, tokens_of(folder))
    assert (losses - transformers_losses(folder)).abs().max() > 1e-3


def test_masked_columns_pass_the_gradient_unchanged() -> None:
    source = torch.randn(2, 3, 5, requires_grad=True)
    masked = gpt._MaskColumns.apply(source * 1, 3)
    assert masked[..., 3:].max() == torch.finfo(torch.float32).min
    masked.softmax(dim=-1)[..., 0].sum().backward()
    expected = torch.autograd.grad(source[..., :3].softmax(dim=-1)[..., 0].sum(), source)[0]
    assert source.grad is not None
    torch.testing.assert_close(source.grad, expected)


@pytest.mark.parametrize("name", ["llama3-tied-bias", "llama"])
def test_rotary_frequencies_are_transformers(name: str, tiny_model: TinyModel, distributed: Workers) -> None:
    """Short sequences hide a wrong scaling of the slow frequencies, so they are compared themselves."""
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    folder = tiny_model(name)
    (found,) = distributed(cases.inverse_frequencies, 1, folder)
    config = AutoConfig.from_pretrained(folder)
    torch.testing.assert_close(found, LlamaRotaryEmbedding(config).inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("granularity", ["selective", "full"])
@pytest.mark.parametrize("layers", [1, 2])
def test_recomputing_activations_changes_nothing(
    granularity: str, layers: int, tiny_model: TinyModel, distributed: Workers
) -> None:
    folder = tiny_model("llama")
    tokens = tokens_of(folder)
    ((losses, gradient),) = distributed(cases.token_losses, 1, folder, {}, tokens, attention_dropout=0.3)
    train = {"recompute_granularity": granularity, "recompute_num_layers": layers}
    ((again, gradient_again),) = distributed(
        cases.token_losses, 1, folder, {}, tokens, train=train, attention_dropout=0.3
    )
    assert torch.equal(losses, again)
    assert torch.equal(gradient, gradient_again)


def test_norm_weights_are_marked_for_sequence_parallelism(tiny_model: TinyModel, distributed: Workers) -> None:
    """Without the mark, gradients of norms stay each rank's own part: no error, only a wrong model."""
    folder = tiny_model("qwen3-tied")
    (marked, all_norms), _ = distributed(cases.marked_norms, 2, folder, {**TP2, "sequence_parallel": True})
    assert marked == all_norms
    assert len(all_norms) == 4 * 4 + 1
    (unmarked, _), _ = distributed(cases.marked_norms, 2, folder, TP2)
    assert unmarked == []
