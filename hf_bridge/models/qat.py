"""Training with weights rounded as they will be once quantised (quantisation-aware training).

`prepare` puts a layer in the place of each linear one, which computes with rounded weights and trains the exact ones:
the gradient passes the rounding as if it were not there (straight-through, arXiv 1308.3432). `convert` rounds for good.
What is saved in between are plain weights; loading them with the quantisation of the same name gives the same model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_bridge.models.linear import linear_names, replace_linears
from hf_bridge.models.quantisation import BNB, QUANT, check_packages, hqq_config, hqq_linear, int8_int4
from swift_mega.base.errors import UserError, nearest


@dataclass(frozen=True)
class Qat:
    """One way of rounding.

    Attributes:
        name: as users write it; what loads the result has the same one.
        package: what has to be importable.
        install: how it gets there.
        group: weights of a row that share a scale: a divisor of every layer's inputs.
        prepare: what trains the rounded model, in place.
        convert: what rounds it for good, in place.
    """

    name: str
    package: str
    install: str
    group: int
    prepare: Callable[[Any], None]
    convert: Callable[[Any], None]


class _Round(torch.autograd.Function):
    """What `rounding` makes of the weights, and their gradient as if it had not."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class RoundedLinear(nn.Linear):
    """A linear layer that computes with rounded weights; its parameters are those of the layer that it is for."""

    def __init__(self, layer: nn.Linear, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.rounding = rounding

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, _Round.apply(self.weight, self.rounding), self.bias)  # type: ignore[no-untyped-call]


def _by_weights(
    rounding: Callable[[Tensor], Tensor], quantised: Callable[[nn.Linear, torch.dtype], nn.Module]
) -> dict[str, Callable[[Any], None]]:
    """Both steps, of a library that can round a tensor and has a layer for the result."""

    def prepare(model: Any) -> None:
        replace_linears(model, lambda layer: RoundedLinear(layer, rounding))

    def convert(model: Any) -> None:
        replace_linears(model, lambda layer: quantised(layer, layer.weight.dtype))

    return {"prepare": prepare, "convert": convert}


def _bnb_4bit(kind: str) -> dict[str, Callable[[Any], None]]:
    def rounding(weight: Tensor) -> Tensor:
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(weight.data, blocksize=64, compress_statistics=True, quant_type=kind)
        found: Tensor = functional.dequantize_4bit(packed, state).to(weight.dtype)
        return found

    def quantised(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
        from bitsandbytes.nn import Linear4bit, Params4bit

        made: nn.Module = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type=kind, device="meta"
        )
        made.weight = Params4bit(layer.weight.data, requires_grad=False, blocksize=64, quant_type=kind, module=made)
        made.bias = layer.bias
        return made.to(layer.weight.device)

    return _by_weights(rounding, quantised)


def _hqq(bits: int) -> dict[str, Callable[[Any], None]]:
    def rounding(weight: Tensor) -> Tensor:
        from hqq.core.quantize import Quantizer

        how = hqq_config(bits)["weight_quant_params"]
        packed, meta = Quantizer.quantize(weight.data, device=str(weight.device), compute_dtype=weight.dtype, **how)
        found: Tensor = Quantizer.dequantize(packed, meta).to(weight.dtype)
        return found

    return _by_weights(rounding, hqq_linear(bits))


def _torchao() -> dict[str, Callable[[Any], None]]:
    def step(name: str) -> Callable[[Any], None]:
        def do(model: Any) -> None:
            from torchao.quantization import quantize_
            from torchao.quantization.qat import QATConfig

            wanted = set(linear_names(model))
            quantize_(model, QATConfig(int8_int4(), step=name), filter_fn=lambda module, path: path in wanted)

        return do

    return {"prepare": step("prepare"), "convert": step("convert")}


QAT = {
    found.name: found
    for found in (
        Qat("torchao-int8-int4", "torchao", QUANT, 32, **_torchao()),
        *(Qat(f"bnb-{kind}", "bitsandbytes", BNB, 1, **_bnb_4bit(kind)) for kind in ("nf4", "fp4")),
        *(Qat(f"hqq-{bits}", "hqq", QUANT, 1, **_hqq(bits)) for bits in (8, 4, 3, 2)),
    )
}
"""What `--loading.qat` takes. HQQ searches for its scales anew in every forward pass, which is slow."""

REFUSED = {
    "bnb-int8": "bitsandbytes rounds activations there, too, and has no function that rounds both for training",
    "eetq": "it rounds in kernels for GPUs that come from a hub, and has not been tried",
}
"""Name → why there is no training for it."""


def prepare_qat(model: Any, name: str) -> None:
    """Let a model's linear layers, but for its head, compute with rounded weights from now on.

    Args:
        model: of transformers, with plain weights.

    Raises:
        UserError: there is no such way, its package is missing, or its groups do not fit the model.
    """
    found = _found(name)
    for path in linear_names(model):
        layer = model.get_submodule(path)
        if layer.in_features % found.group:
            raise UserError(
                f"`{name}` has a scale for every {found.group} weights, and {path} {layer.in_features} inputs.",
                f"Take one without such groups: {', '.join(one.name for one in QAT.values() if one.group == 1)}.",
            )
    found.prepare(model)


def convert_qat(model: Any, name: str) -> None:
    """Round the weights of a model that `prepare_qat` prepared, for good."""
    _found(name).convert(model)


def _found(name: str) -> Qat:
    if name in REFUSED:
        raise UserError(f"no model can be trained for `{name}`: {REFUSED[name]}.", f"There are {', '.join(QAT)}.")
    if name not in QAT:
        raise UserError(f"--loading.qat is {name}.", nearest(name, QAT))
    found = QAT[name]
    check_packages(f"`--loading.qat {name}`", (found.package,), found.install)
    return found
