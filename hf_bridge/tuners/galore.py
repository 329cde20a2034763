"""GaLore (Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", arXiv:2403.03507).

All weights are trained, but Adam sees the gradients of matrices in a subspace only, so its moments are small. For a
weight W of shape [m, n], m ≤ n, with the gradient G_t, every T steps

    P = U[:, :r]   of   U S Vᵀ = SVD(G_t),

and in every step

    R = Pᵀ G,   M ← β₁M + (1−β₁)R,   V ← β₂V + (1−β₂)R²,   N = M̂ / (√V̂ + ε),   W ← W − η (α P N + λ W).

Where m > n, all is transposed. The moments stay when P changes. Other parameters get plain AdamW.

`per_layer` takes each step for a parameter as soon as its gradient is there, in the backward pass, and frees it: no two
gradients of a matrix exist at a time. There can be no clipping by the global norm and no accumulation then.

It trains the model's own weights: detach leaves them as they have become.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.full import Full, FullConfig
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError


@dataclass(kw_only=True)
class GaLoreConfig(FullConfig):
    """Options of GaLore, besides those of `full`."""

    target_modules: list[str] = field(default_factory=list)
    """Ends of names of modules whose matrices are projected; none: attention and MLP of every layer."""

    rank: int = 128
    """r."""

    update_interval: int = 200
    """T: steps between two projections."""

    scale: float = 0.25
    """α."""

    per_layer: bool = False
    """Take the steps in the backward pass."""


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW, in a subspace for the groups that have a `rank`.

    Moments are in fp32 for weights of any type. Its state is resumed as it was saved, to the last bit.

    Args:
        groups: torch's parameter groups; `rank` (0: plain AdamW), `update_interval` and `scale` besides.
        lr: η where a group has none.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ where a group has none; decoupled.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "rank": 0, "update_interval": 200, "scale": 1.0})
        self._hooks: list[Any] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step for every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update(param, group)
        return loss

    def update(self, param: nn.Parameter, group: dict[str, Any]) -> None:
        """One step for one parameter."""
        state, gradient = self.state[param], param.grad.float()  # type: ignore[union-attr]
        state["step"] = state.get("step", 0) + 1
        if not group["rank"]:
            direction = self.adam(state, gradient, group)
        else:
            # Short side first, whichever that is.
            tall = gradient.shape[-2] > gradient.shape[-1]
            gradient = gradient.mT if tall else gradient
            basis = self.basis(state, gradient, group)
            direction = group["scale"] * (basis @ self.adam(state, basis.mT @ gradient, group))
            direction = direction.mT if tall else direction
        self.subtract(param, direction + group["weight_decay"] * param.float(), group["lr"])

    def adam(self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """N of the gradient, whose moments it updates."""
        first, second = self.moments(state, gradient)
        (beta1, beta2), step = group["betas"], state["step"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self.keep_moments(state, first, second)
        size: torch.Tensor = (second / (1 - beta2**step)).sqrt() + group["eps"]
        direction: torch.Tensor = first / (1 - beta1**step) / size
        return direction

    def basis(self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """P, [m, r], of this gradient where it is time for it."""
        if (state["step"] - 1) % group["update_interval"] == 0:
            state["basis"] = leading(gradient, group["rank"])
        return state["basis"]  # type: ignore[no-any-return]

    def moments(self, state: dict[str, Any], gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M and V before this step."""
        if "exp_avg" not in state:
            zeros = torch.zeros(gradient.shape, device=gradient.device)
            return zeros, zeros.clone()
        return state["exp_avg"], state["exp_avg_sq"]

    def keep_moments(self, state: dict[str, Any], first: torch.Tensor, second: torch.Tensor) -> None:
        """M and V for the next step."""
        state["exp_avg"], state["exp_avg_sq"] = first, second

    def subtract(self, param: nn.Parameter, direction: torch.Tensor, lr: float) -> None:
        """W ← W − η·direction, in fp32 and rounded once."""
        param.copy_(param.float() - lr * direction)

    def update_in_backward(self) -> None:
        """From now on, every step is taken in the backward pass, and `step` has nothing to do."""
        for number, group in enumerate(self.param_groups):
            for param in group["params"]:
                hook = param.register_post_accumulate_grad_hook(functools.partial(self._update_now, number))
                self._hooks.append(hook)

    @torch.no_grad()
    def _update_now(self, number: int, param: nn.Parameter) -> None:
        # By its number: loading a state puts new groups in the place of the old ones.
        self.update(param, self.param_groups[number])
        param.grad = None

    def leave_backward(self) -> None:
        """Undo `update_in_backward`."""
        while self._hooks:
            self._hooks.pop().remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved: torch's own would give moments the type of their weights."""
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        for index, saved in state_dict["state"].items():
            param = params[index]
            self.state[param] = {
                key: value.to(param.device, copy=True) if isinstance(value, torch.Tensor) else _copied(value)
                for key, value in saved.items()
            }


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def leading(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    """The first `rank` left singular vectors, [..., m, r]; all m where there are fewer."""
    vectors: torch.Tensor = torch.linalg.svd(gradient, full_matrices=False)[0]
    return vectors[..., :rank].contiguous()


class GaLore(Full):
    """All weights, with gradients projected for the optimizer."""

    optimizer_class: type[GaLoreAdamW] = GaLoreAdamW

    def __init__(self, model: nn.Module, name: str, config: GaLoreConfig) -> None:
        modules = anatomy.targets(model, config.target_modules) if config.target_modules else anatomy.sublayers(model)
        super().__init__(model, name, config)
        inside = {id(param) for module in modules.values() for param in module.parameters() if param.dim() >= 2}
        self._projected = inside & {id(param) for param in self.parameters().values()}
        self._optimizer: GaLoreAdamW | None = None

    def optimizer(self, groups: list[dict[str, Any]], arguments: Any) -> torch.optim.Optimizer:
        """AdamW in a subspace.

        Raises:
            UserError: gradients are cut into pieces, or would be accumulated or clipped after the steps are taken.
        """
        _check_whole(self.name, arguments)
        if self.config.per_layer:
            _check_per_layer(self.name, arguments)
        split = [part for group in groups for part in self._split(group)]
        self.detach()
        self._optimizer = self.optimizer_class(
            split,
            lr=arguments.learning_rate,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            eps=arguments.adam_epsilon,
            weight_decay=arguments.weight_decay,
        )
        if self.config.per_layer:
            self._optimizer.update_in_backward()
        return self._optimizer

    def _split(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group's projected parameters, and the others."""
        projected = [param for param in group["params"] if id(param) in self._projected]
        others = [param for param in group["params"] if id(param) not in self._projected]
        parts = [{**group, "params": projected, **self.options()}, {**group, "params": others}]
        return [part for part in parts if part["params"]]

    def options(self) -> dict[str, Any]:
        """What a projected group is told."""
        config = self.config
        return {"rank": config.rank, "update_interval": config.update_interval, "scale": config.scale}

    def detach(self) -> None:
        if self._optimizer is not None:
            self._optimizer.leave_backward()


def _check_whole(name: str, arguments: Any) -> None:
    if getattr(arguments, "deepspeed", None) or getattr(arguments, "fsdp", None):
        raise UserError(
            f"`{name}` takes the singular vectors of whole gradients, and DeepSpeed and FSDP cut them into pieces.",
            "Train on one GPU, or with plain data parallelism.",
        )


def _check_per_layer(name: str, arguments: Any) -> None:
    wrong = {
        f"gradient_accumulation_steps is {arguments.gradient_accumulation_steps}": (
            arguments.gradient_accumulation_steps > 1,
            "gradient_accumulation_steps 1",
        ),
        f"max_grad_norm is {arguments.max_grad_norm}": (bool(arguments.max_grad_norm), "max_grad_norm 0"),
        f"there are {arguments.world_size} processes": (arguments.world_size > 1, "one process"),
        "fp16 scales the loss": (arguments.fp16, "bf16"),
    }
    for what, (is_so, instead) in wrong.items():
        if is_so:
            raise UserError(
                f"`{name}` with per_layer takes each step in the backward pass, and {what}.",
                f"Set {instead}, or leave per_layer out.",
            )


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> GaLore:
    return GaLore(model, name, config)


TUNERS = [Tuner("galore", GaLoreConfig, "GaLore, arXiv:2403.03507", _attach)]
