"""Adam as megatron's distributed optimizer wants it, from torch alone.

TransformerEngine and apex have a `FusedAdam` that takes `adam_w_mode` and counts its steps once per
parameter group, as an int. megatron saves and reshards that count; torch's own Adam keeps one tensor
per parameter instead, and its count is lost where a rank holds no piece of a parameter. This class has
the former's interface and torch's fused kernels.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw


class Adam(torch.optim.Optimizer):
    """Adam with an int `step` in each parameter group.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled (AdamW) or added to the gradient (Adam), by `adam_w_mode`.
        capturable: into a CUDA graph, which this one is not; megatron-core 0.19 says so at every call.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if capturable:
            raise ValueError("this Adam counts its steps on the host and cannot be part of a CUDA graph")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; every group counts it, empty ones too."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        states = [self._state(param) for param in params]
        beta1, beta2 = group["betas"]
        # The kernels count up a tensor per parameter themselves, so they get the count before this step.
        steps = torch.full((len(params),), float(group["step"] - 1), device=params[0].device)
        update = adamw if self.adam_w_mode else adam
        update(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state
