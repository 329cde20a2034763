"""NEFTune (Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv:2310.05914).

In training, and only there, noise is added to the embeddings of the tokens:

    e ← e + α / √(L·d) · u,   u ~ Uniform(−1, 1),

with d the width and L the tokens of the sequence: those that its attention mask shows, as in the authors' code
(transformers takes the width of the padded batch), or all of them where there is no mask of shape [batch, sequence].
It has no parameters, and goes beside `full` or any tuner.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside, PerThread
from hf_bridge.tuners.tuner import Tuner


@dataclass(kw_only=True)
class NEFTuneConfig:
    """Options of NEFTune."""

    alpha: float = 5.0
    """How strong the noise is; the paper tries 5, 10 and 15."""


class NEFTune(Beside):
    """Noise on the embeddings of a model that is being trained."""

    def __init__(self, model: nn.Module, name: str, config: NEFTuneConfig, activation: Activation) -> None:
        embeddings = anatomy.embeddings(model)
        super().__init__(model, name, config, activation)
        self._seen = PerThread()  # two threads may be in two forward passes
        self._hooks.append(self._home.register_forward_pre_hook(self._see, with_kwargs=True))
        self.after(embeddings, self._add_noise)

    def _see(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._seen.mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def _add_noise(self, embedded: torch.Tensor, *_: Any) -> torch.Tensor | None:
        """`embedded`: [batch, sequence, width]."""
        if not self._home.training:
            return None
        mask: torch.Tensor | None = getattr(self._seen, "mask", None)
        lengths = torch.tensor([embedded.shape[1]])
        if mask is not None and mask.shape == embedded.shape[:2]:
            lengths = mask.sum(-1)
        size: torch.Tensor = self.config.alpha / (lengths * embedded.shape[2]).clamp(min=1).sqrt()
        noise = torch.zeros_like(embedded).uniform_(-1, 1)
        return embedded + noise * size.to(embedded)[:, None, None]

    def merge(self) -> None:
        """Nothing to do: there is no noise outside training."""


TUNERS = [Tuner("neftune", NEFTuneConfig, "arXiv:2310.05914", NEFTune)]
