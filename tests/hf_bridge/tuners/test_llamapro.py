"""LLaMA-Pro: block expansion by hand, on many architectures, and the deeper model as a plain folder."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.llamapro import LLaMAPro, grouped
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own
from tests.support import tiny

FAMILIES = ["llama3-tied-bias", "qwen2-window", "gemma3", "gpt-oss", "qwen2-moe-sparse-steps", "deepseek-v3"]
MORE_FAMILIES = ["olmo2", "glm4", "phi3", "granite", "mixtral", "qwen3-moe-dense-layers", "qwen3-next-dense-layers"]


def expanded(model: Any, **options: Any) -> LLaMAPro:
    attached = own.attach(model, "llamapro", **options)
    assert isinstance(attached, LLaMAPro)
    return attached


def by_hand(model: Any, blocks: dict[str, torch.nn.Parameter]) -> Any:
    """The paper's model: 2 groups of 2 layers, 2 new blocks behind each."""
    deeper = copy.deepcopy(model)
    layers: Any = torch.nn.ModuleList(copy.deepcopy(model.model.layers[i]) for i in (0, 1, 1, 1, 2, 3, 3, 3))
    for number, place in enumerate((2, 3, 6, 7)):
        state = {key.removeprefix(f"blocks.{number}."): value for key, value in blocks.items()}
        layers[place].load_state_dict({key: state[key] for key in layers[place].state_dict()})
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    deeper.model.layers, deeper.config.num_hidden_layers = layers, 8
    return deeper


def test_blocks_run_where_the_paper_has_them(tiny_model: Callable[..., Path]) -> None:
    model, plain = (own.load(tiny_model("llama")) for _ in range(2))
    attached = expanded(model)
    blocks = attached.parameters()
    zero = [key for key, param in blocks.items() if not param.any()]
    assert zero == [f"blocks.{n}.{part}.weight" for n in range(4) for part in ("self_attn.o_proj", "mlp.down_proj")]
    own.disturb(attached)
    deeper, tokens = by_hand(plain, blocks), tiny.tokens(101)
    torch.testing.assert_close(own.logits(model, tokens), own.logits(deeper, tokens), rtol=0, atol=1e-6)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    assert torch.equal(model.generate(tokens, **options), deeper.generate(tokens, **options))


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(family, marks=pytest.mark.slow) for family in MORE_FAMILIES)]
)
def test_the_deeper_model_is_a_plain_folder(tiny_model: Callable[..., Path], family: str, tmp_path: Path) -> None:
    model = own.load(tiny_model(family))
    tokens = tiny.tokens(model.config.vocab_size)
    before = own.logits(model, tokens)
    attached = expanded(model)
    torch.testing.assert_close(own.logits(model, tokens), before, rtol=0, atol=1e-5)
    own.disturb(attached)
    after = own.logits(model, tokens)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    written = model.generate(tokens, **options)
    attached.save_expanded(tmp_path)
    deeper = own.load(tmp_path)
    assert deeper.config.num_hidden_layers == 8 and not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(own.logits(deeper, tokens), after, rtol=1e-5, atol=1e-5)
    assert torch.equal(deeper.generate(tokens, **options), written)


def test_a_block_that_is_not_at_work_is_skipped(tiny_model: Callable[..., Path]) -> None:
    model, activation = own.load(tiny_model("llama")), Activation(["llamapro"])
    attached, calls = own.attach(model, "llamapro", activation), []
    assert isinstance(attached, LLaMAPro)
    attached.parts.get_submodule("blocks.0").register_forward_hook(lambda *_: calls.append(1))
    own.logits(model, tiny.tokens(101))
    with activation.only([]):
        own.logits(model, tiny.tokens(101))
    assert calls == [1]


def test_copies_have_neither_lora_nor_hooks(tiny_model: Callable[..., Path]) -> None:
    import peft

    model = own.load(tiny_model("llama"))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["input_layernorm"]), model)
    own.attach(model, "scedit")
    attached = expanded(model)
    plain = own.load(tiny_model("llama")).model.layers[1].state_dict()
    assert {key.removeprefix("blocks.0.") for key in attached.parameters() if key.startswith("blocks.0.")} == set(plain)
    assert not any(module._forward_hooks for module in attached.parts.modules())


def test_blocks_in_fp32_in_a_model_of_bf16(tiny_model: Callable[..., Path]) -> None:
    model = own.load(tiny_model("llama"), torch.bfloat16)
    attached = expanded(model)
    own.disturb(attached)
    expected = own.logits(model, tiny.tokens(101))
    for param in attached.parameters().values():
        param.data = param.data.float()
    mixed = own.logits(model, tiny.tokens(101))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, expected, rtol=0.05, atol=0.3)
    own.loss(model.train(), tiny.tokens(101)).backward()
    assert all(param.grad is not None and param.grad.dtype == torch.float32 for param in attached.parameters().values())


def test_with_another_tuner_it_is_not_written(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = own.load(tiny_model("llama"))
    own.attach(model, "adapter")
    attached = expanded(model)
    with pytest.raises(UserError, match="Merge or detach other tuners first"):
        attached.save_expanded(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layers", "blocks", "groups"), [(4, 3, 3), (4, 3, 2), (4, 0, 1)])
def test_groups_that_do_not_fit(layers: int, blocks: int, groups: int) -> None:
    with pytest.raises(UserError, match="4 is divided by 1, 2, 4"):
        grouped(layers, blocks, groups)


def test_a_quantised_model_is_refused(tiny_model: Callable[..., Path]) -> None:
    model = own.load(tiny_model("llama"))
    layer = model.model.layers[2].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"model\.layers\.2\.mlp\.up_proj\.weight` is quantised \(torch\.int8\)"):
        expanded(model)


class Layer(torch.nn.Module):
    def __init__(self, gate: bool) -> None:
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"up": torch.nn.Linear(6, 9), "down_proj": torch.nn.Linear(9, 6)})
        self.gate = torch.nn.Linear(6, 6) if gate else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.mlp["down_proj"](self.mlp["up"](x).relu())
        return y if self.gate is None else y + self.gate(x)


class Model(torch.nn.Module):
    """Not of transformers."""

    def __init__(self, gate: bool = False) -> None:
        super().__init__()
        self.embed, self.layers = torch.nn.Embedding(10, 6), torch.nn.ModuleList(Layer(gate) for _ in range(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks_that_are_no_identity_are_refused() -> None:
    model = Model(gate=True)
    expanded(model, num_new_blocks=3, num_groups=3)
    with pytest.raises(UserError, match="a new Layer is not the identity"):
        model(torch.arange(10))


def test_on_a_model_of_ones_own() -> None:
    """Its layers are found, and expanded alike."""
    model, ids = Model(), torch.arange(10)
    before = model(ids)
    attached = expanded(model, num_new_blocks=3, num_groups=3)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-6)
    own.disturb(attached)
    assert not torch.allclose(model(ids), before, atol=1e-2)
    attached.detach()
    assert torch.equal(model(ids), before)
