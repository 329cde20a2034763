"""SCEdit (Jiang et al., "SCEdit: Efficient and Controllable Image Diffusion Generation via Skip Connection Editing",
arXiv:2312.11392).

A tuner edits what goes through a skip connection and leaves the path beside it alone: x → x + T(x). The paper edits
those from a U-Net's encoder to its decoder. A language model has no such long ones; its skip connections are the
residual ones around attention and MLP, and these two in a row are the one around a whole layer. Acted on is that one:

    layer(x) = x + F(x)   becomes   (x + T(x)) + F(x),   T(x) = W_up φ(W_down x + b_down) + b_up,

where F, all that the layer computes, still sees the x that was not edited.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.bottleneck import BottleneckConfig, Bottlenecks
from hf_bridge.tuners.tuner import Tuner


@dataclass(kw_only=True)
class SCEditConfig(BottleneckConfig):
    """Options of SCEdit."""


class SCEdit(Bottlenecks):
    """A bottleneck on the residual connection around every layer."""

    reads = "given"
    not_linear = "a residual connection has no weights, and between a tuner's two matrices is an activation function"

    def modules(self, model: nn.Module, config: BottleneckConfig) -> Mapping[str, nn.Module]:
        return anatomy.layers(model)


TUNERS = [Tuner("scedit", SCEditConfig, "arXiv:2312.11392", SCEdit)]
