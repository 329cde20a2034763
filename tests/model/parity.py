"""What Megatron computes on a layout, held against transformers in one process, and the layouts."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from converters import checkpoint
from swift_mega.model.logits import transformers_logits
from tests.model import cases
from tests.support import tiny, tiny_dense
from tests.support.distributed import Workers

TP2 = {"tensor_model_parallel_size": 2}
SP = {"sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = {"virtual_pipeline_model_parallel_size": 2}

Layout = tuple[int, dict[str, Any]]
"""Number of ranks, and the `parallel` section."""

LAYOUTS: dict[str, Layout] = {
    "TP1": (1, {}),
    "TP2": (2, TP2),
    "TP2+SP": (2, TP2 | SP),
    "PP2": (2, PP2),
    "PP2xVPP2": (2, PP2 | VPP2),
    "TP2xPP2": (4, TP2 | PP2),
}


def tokens_for(folder: Path) -> Tensor:
    """Token ids for the model in `folder`."""
    return tiny.tokens(checkpoint.read_config(folder)["vocab_size"])


@functools.cache
def expected(folder: Path) -> tuple[Tensor, Tensor]:
    """Token ids and transformers' logits."""
    return tokens_for(folder), transformers_logits(tiny_dense.reference(folder), tokens_for(folder))


@functools.cache
def expected_gradients(folder: Path) -> dict[str, Tensor]:
    """transformers' gradient of the mean loss of the same tokens, under the names of the files' tensors."""
    from transformers import AutoModelForCausalLM

    config, tokens = checkpoint.read_config(folder), tokens_for(folder)
    reference = tiny_dense.reference(folder)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32, attn_implementation="eager")
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, dims=1).flatten()).backward()
    with tempfile.TemporaryDirectory() as saved:
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(param.grad)
        model.save_pretrained(saved)
        found = {name: tensor.clone() for name, tensor in load_file(Path(saved) / "model.safetensors").items()}
    if config["model_type"] == "internlm2":
        return tiny_dense.internlm2_tensors(found, config["num_key_value_heads"])
    return found


def assert_logits_equal_and_weights_return(folder: Path, layout: Layout, distributed: Workers, back: Path) -> None:
    """To 1e-4, and byte for byte in `back`."""
    tokens, wanted = expected(folder)
    world_size, parallel = layout
    for logits, digest in distributed(cases.logits_and_round_trip, world_size, folder, parallel, tokens, back):
        assert (logits - wanted).abs().max() <= 1e-4
        assert digest == cases.digest(folder)


def assert_gradients_equal(folder: Path, layout: Layout, distributed: Workers, target: Path) -> None:
    """Of every weight, written to `target`."""
    world_size, parallel = layout
    distributed(cases.gradients, world_size, folder, parallel, tokens_for(folder), target)
    found = load_file(target / "model.safetensors")
    assert set(found) == set(expected_gradients(folder))
    assert wrong(found, expected_gradients(folder)) == []


def wrong(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """The weights whose gradient is farther off than 10⁻⁴ of its largest element."""
    return [
        f"{weight}: {difference:.1e} at a largest gradient of {scale:.1e}"
        for weight, gradient in wanted.items()
        for scale in [gradient.abs().max().item()]
        for difference in [(found[weight] - gradient).abs().max().item()]
        if difference > 1e-4 * scale + 1e-7
    ]
