"""Continued pretraining: predict the next token of packed documents.

from swift_mega.methods.pretrain import pretrain
pretrain(config)        # a PretrainConfig, in a process of torchrun or alone
"""

from typing import TYPE_CHECKING

from swift_mega.base.console import counted, say
from swift_mega.base.world import launched_world_size
from swift_mega.methods.check import check
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import Outcome, finished

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from swift_mega.train.loop import Callback


class Pretrain:
    """The batch and the loss of pretraining (a `swift_mega.train.step.Method`)."""

    def forward(self, model: "torch.nn.Module", batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
        """Cross entropy of each token, [B, S] in fp32, on the last pipeline stage; hidden states elsewhere."""
        output: torch.Tensor = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        return output

    def loss(self, batch: "dict[str, torch.Tensor]", output: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum over the tokens that count, and how many they are."""
        mask = batch["loss_mask"].float()
        return (output.float() * mask).sum(), mask.sum()


def pretrain(config: PretrainConfig, callbacks: "Sequence[Callback]" = ()) -> Outcome:
    """Run `config` to its end in this process, as one rank of the world that torchrun made, and say how it ended.

    Args:
        callbacks: your own, called after the run's at every step (`swift_mega.train.loop.Callback`).

    Raises:
        UserError: on every rank, for anything the user can mend.
    """
    check(config, launched_world_size() or 1)  # before a process group of the wrong size is asked for
    if outcome := finished(config):
        say(f"{config.output} is finished: {outcome.checkpoint.name} has all {counted(config.train.steps, 'step')}.")
        say("To go on, raise train.steps.")
        return outcome
    from swift_mega import compat

    compat.install()  # before anything imports megatron
    from swift_mega.methods.run import run

    return run(config, Pretrain(), callbacks)
