"""Weights in few bits while they are frozen: what QLoRA (arXiv 2305.14314) tunes beside.

The table holds what can be asked for with `--loading.quantization`; `SAVED` what a folder may come with.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_bridge.models.linear import linear_names, replace_linears
from swift_mega.base.console import say
from swift_mega.base.errors import UserError, nearest


@dataclass(frozen=True)
class Quantisation:
    """One way of quantising weights as a model is loaded.

    Attributes:
        name: as users write it.
        package: what has to be importable.
        install: how it gets there.
        cpu: whether it also computes without a GPU.
        trains: whether a gradient passes; rounded activations have none.
        config: compute dtype → transformers' quantisation config; None: transformers has none that works, see `linear`.
        linear: a linear layer and the compute dtype → the quantised layer, where transformers does not do it.
    """

    name: str
    package: str
    install: str
    cpu: bool = True
    trains: bool = True
    config: Callable[[torch.dtype], Any] | None = None
    linear: Callable[[nn.Linear, torch.dtype], nn.Module] | None = None


def _bnb_4bit(kind: str) -> Callable[[torch.dtype], Any]:
    def config(dtype: torch.dtype) -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,  # also the scales, as QLoRA does
        )

    return config


def _bnb_int8(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _torchao(name: str) -> Callable[[torch.dtype], Any]:
    def config(dtype: torch.dtype) -> Any:
        from torchao import quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, name)())

    return config


def int8_int4() -> Any:
    """torchao's config: int8 activations with a scale for each token, int4 weights with one for every 32 of a row."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig
    from torchao.quantization.granularity import PerGroup

    int4 = torch.int4  # type: ignore[attr-defined]
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=int4, weight_granularity=PerGroup(32))


def _int8_int4(dtype: torch.dtype) -> Any:
    from transformers import TorchAoConfig

    return TorchAoConfig(int8_int4())


def _eetq(dtype: torch.dtype) -> Any:
    from transformers import EetqConfig

    return EetqConfig("int8")


def _fp8(dtype: torch.dtype) -> Any:
    from transformers import FineGrainedFP8Config

    return FineGrainedFP8Config()


def hqq_config(bits: int) -> dict[str, Any]:
    """hqq's options: one scale for every 64 weights of a row."""
    from hqq.core.quantize import BaseQuantizeConfig

    return dict(BaseQuantizeConfig(nbits=bits, group_size=64, axis=1))


def hqq_linear(bits: int) -> Callable[[nn.Linear, torch.dtype], nn.Module]:
    """Half-quadratic quantisation of one layer.

    transformers 5 knows HqqConfig but has no code for it ("HQQ is not available yet").
    """

    def linear(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
        from hqq.core.quantize import HQQLinear

        device = str(layer.weight.device)
        made: nn.Module = HQQLinear(layer, hqq_config(bits), compute_dtype=dtype, device=device, del_orig=True)
        return made

    return linear


BNB = "pip install 'swift-mega[qlora]'"
QUANT = "pip install 'swift-mega[quant]'"

QUANTISATIONS = {
    found.name: found
    for found in (
        Quantisation("bnb-nf4", "bitsandbytes", BNB, config=_bnb_4bit("nf4")),
        Quantisation("bnb-fp4", "bitsandbytes", BNB, config=_bnb_4bit("fp4")),
        Quantisation("bnb-int8", "bitsandbytes", BNB, config=_bnb_int8),
        *(Quantisation(f"hqq-{bits}", "hqq", QUANT, linear=hqq_linear(bits)) for bits in (8, 4, 3, 2, 1)),
        Quantisation("torchao-int8", "torchao", QUANT, config=_torchao("Int8WeightOnlyConfig")),
        Quantisation("torchao-float8", "torchao", QUANT, config=_torchao("Float8WeightOnlyConfig")),
        Quantisation("torchao-int8-int4", "torchao", QUANT, trains=False, config=_int8_int4),
        Quantisation("eetq", "kernels", "pip install kernels", cpu=False, config=_eetq),
        Quantisation("fp8", "kernels", "pip install kernels", cpu=False, config=_fp8),
    )
}
"""What `--loading.quantization` takes."""


@dataclass(frozen=True)
class Saved:
    """What a folder with quantised weights needs.

    Attributes:
        packages: that have to be importable.
        install: how they get there.
    """

    packages: tuple[str, ...]
    install: str


GPTQMODEL = (
    "pip install --no-deps 'setuptools>=77' pypcre logbar tokenicer device-smi threadpoolctl 'optimum>=2.3' && "
    "BUILD_CUDA_EXT=0 pip install --no-deps --no-build-isolation defuser gptqmodel==7.7.0"
)
"""Alone it would bring a torch of its own."""

SAVED = {
    "gptq": Saved(("gptqmodel", "optimum"), GPTQMODEL),
    "awq": Saved(("gptqmodel",), GPTQMODEL),
    "aqlm": Saved(("aqlm",), "pip install 'aqlm[gpu,cpu]'"),
    "bitsandbytes": Saved(("bitsandbytes",), BNB),
    "torchao": Saved(("torchao",), QUANT),
    "compressed-tensors": Saved(("compressed_tensors",), "pip install compressed-tensors"),
    "eetq": Saved(("kernels",), "pip install kernels"),
    "fp8": Saved((), ""),
    "mxfp4": Saved((), ""),
}
"""`quant_method` of config.json → what reads it. The last two become plain weights where no GPU computes with them."""


def quantisation(name: str) -> Quantisation:
    """The one called `name`, which works here.

    Raises:
        UserError: there is none, it needs a package that is missing, or a GPU.
    """
    if name not in QUANTISATIONS:
        other = (
            f"{name.upper()} is made of a whole model beforehand: name a folder that holds one."
            if name in ("gptq", "awq", "aqlm")
            else nearest(name, QUANTISATIONS)
        )
        raise UserError(f"there is no quantisation `{name}` while loading.", other)
    found = QUANTISATIONS[name]
    check_packages(f"`--loading.quantization {name}`", (found.package,), found.install)
    if not found.cpu and not torch.cuda.is_available():
        usable = [other.name for other in QUANTISATIONS.values() if other.cpu]
        raise UserError(f"`{name}` needs a GPU.", f"Without one there are {', '.join(usable)}.")
    return found


def check_trains(name: str) -> None:
    """A gradient passes weights quantised in the way `name`, so that something can be tuned beside them.

    Raises:
        UserError: none does.
    """
    if name in QUANTISATIONS and not QUANTISATIONS[name].trains:
        usable = [found.name for found in QUANTISATIONS.values() if found.trains]
        raise UserError(
            f"nothing can be tuned beside `{name}`: its activations are rounded, which no gradient passes.",
            f"Take {', '.join(usable)}; or train for it with `--loading.qat`.",
        )


def check_saved(config: Any, folder: Any, asked: str | None) -> None:
    """What a folder with quantised weights asks for is there.

    Args:
        config: of transformers.
        asked: the quantisation that was asked for besides.

    Raises:
        UserError: a package is missing, or quantised weights are to be quantised.
    """
    saved = getattr(config, "quantization_config", None)
    if saved is None:
        return
    method = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
    method = str(getattr(method, "value", method))
    if asked is not None:
        raise UserError(
            f"the weights in {folder} are quantised already ({method}).",
            f"Leave `{asked}` out, or take the model they were made of.",
        )
    if method in SAVED:
        check_packages(f"the weights in {folder} ({method})", SAVED[method].packages, SAVED[method].install)


def check_packages(what: str, packages: tuple[str, ...], install: str) -> None:
    """Whether packages are there.

    Args:
        what: what they are for.
        install: the command that brings them.

    Raises:
        UserError: some are not.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"not installed, for {what}: {', '.join(missing)}.", install)


def quantise(model: Any, asked: Quantisation, dtype: torch.dtype) -> None:
    """Replace the linear layers of a loaded model, but for its head, where transformers has not done it.

    Experts that lie in one tensor, as transformers 5 has them, are no linear layers to any of these libraries: they
    stay as they are, which is said.
    """
    if (linear := asked.linear) is not None:
        replace_linears(model, lambda layer: linear(layer, dtype))
    experts = [parameter.numel() for name, parameter in model.named_parameters() if _is_of_experts(name, parameter)]
    if experts:
        layers = [model.get_submodule(name) for name in linear_names(model)]
        share = sum(experts) / (sum(experts) + sum(layer.in_features * layer.out_features for layer in layers))
        say(
            f"`{asked.name}` leaves the experts as they are, {share:.0%} of what it is for: no library here takes them."
        )


def _is_of_experts(name: str, parameter: Tensor) -> bool:
    """Whether a parameter holds a matrix for each expert."""
    return "experts" in name and parameter.dim() == 3
