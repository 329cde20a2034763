"""The small network that adapters, Res-Tuners and SCEdit's tuners are made of."""

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Bottleneck(nn.Module):
    """T(x) = W_up φ(W_down x + b_down) + b_up, for x of shape [..., width].

    W_up and both biases start at zero: T(x) = 0, and the model at first does what it did without the tuner. (Houlsby
    et al. draw W_up with σ = 0.01: nearly so.) W_down is drawn as Houlsby et al. draw it, normal, σ = 0.01, cut at 2σ.
    """

    def __init__(self, width: int, bottleneck: int, activation: str = "gelu") -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.activation = ACTIVATIONS[activation]()
        self.up = nn.Linear(bottleneck, width)
        nn.init.trunc_normal_(self.down.weight, std=0.01, a=-0.02, b=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Its weights are in fp32 however few bits the model has.
        return self.up(self.activation(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)  # type: ignore[no-any-return]
