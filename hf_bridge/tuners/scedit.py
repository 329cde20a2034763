"""SCEdit (Jiang et al., "SCEdit: Efficient and Controllable Image Diffusion Generation via Skip Connection Editing",
arXiv:2312.11392).

A tuner edits what goes through a skip connection and leaves the path beside it alone: x → x + T(x). The paper edits
those from a U-Net's encoder to its decoder. A language model has no such long ones; its skip connections are the
residual ones around attention and MLP, and these two in a row are the one around a whole layer. Acted on is that one:

    layer(x) = x + F(x)   becomes   (x + T(x)) + F(x),   T(x) = W_up φ(W_down x + b_down) + b_up,

where F, all that the layer computes, still sees the x that was not edited.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside
from hf_bridge.tuners.bottleneck import Bottleneck
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError


@dataclass(kw_only=True)
class SCEditConfig:
    """Options of SCEdit."""

    bottleneck: int = 64
    """Rows of W_down."""

    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """φ."""


class SCEdit(Beside):
    """A bottleneck on the residual connection around every layer."""

    def __init__(self, model: nn.Module, name: str, config: SCEditConfig, activation: Activation) -> None:
        layers = anatomy.layers(model)
        super().__init__(model, name, config, activation)
        for path, layer in layers.items():
            part = Bottleneck(anatomy.width(model), config.bottleneck, config.activation)
            self.add(path, part, layer)
            self.after(layer, lambda result, given, part=part: result + part(given))

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: a residual connection has no weights, and between a tuner's two"
            " matrices is an activation function.",
            "Keep the tuner beside the model, or tune with `lora`.",
        )


TUNERS = [Tuner("scedit", SCEditConfig, "arXiv:2312.11392", SCEdit)]
