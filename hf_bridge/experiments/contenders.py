"""The ten tuners of SWIFT's Table 4 (arXiv 2408.05517): what they are told, what was measured, what they claim.

All of it is data. Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hf_bridge.experiments.config import BenchTunersConfig

Quantity = Literal["memory_gib", "samples_per_s"]


@dataclass(frozen=True)
class Paper:
    """A line of Table 4: Qwen-7B-Chat on one A100 of 80 GB."""

    train_loss: float
    eval_loss: float
    memory_gib: float
    samples_per_s: float
    trainable_millions: float | None = None


@dataclass(frozen=True)
class Contender:
    """A tuner that is compared.

    Attributes:
        title: as the paper has it.
        tuner: as `--tuner` has it.
        options: of the tuner → the option of the benchmark that says how much.
        changes: what it trains changes from step to step, so that there is no one number of parameters.
    """

    title: str
    tuner: str
    paper: Paper
    options: Mapping[str, str] = field(default_factory=dict)
    changes: bool = False

    def tuner_options(self, config: BenchTunersConfig) -> dict[str, int]:
        """The tuner's own options."""
        return {own: getattr(config, ours) for own, ours in self.options.items()}


RANK = {"r": "lora_rank"}

CONTENDERS = (
    Contender("AdaLoRA", "adalora", Paper(0.57, 1.07, 32.55, 0.92, 26.84), {"target_r": "lora_rank"}),
    Contender("DoRA", "dora", Paper(0.53, 1.01, 32.46, 0.51, 19.25), RANK),
    Contender("GaLore", "galore", Paper(0.55, 1.00, 47.02, 1.10, 7721.32), {"rank": "galore_rank"}),
    Contender("Q-GaLore", "q-galore", Paper(0.54, 1.00, 41.53, 1.45, 7721.32), {"rank": "galore_rank"}),
    Contender(
        "LLaMA-Pro", "llamapro", Paper(0.53, 1.00, 38.11, 1.53, 809.58), {"num_new_blocks": "llamapro_new_blocks"}
    ),
    Contender("LoRA+", "lora+", Paper(0.53, 0.98, 32.35, 0.95, 17.89), RANK),
    Contender("LoRA", "lora", Paper(0.53, 1.01, 32.35, 0.95, 17.89), RANK),
    Contender("rsLoRA", "rslora", Paper(0.53, 0.99, 32.35, 0.94, 17.89), RANK),
    Contender(
        "LISA", "lisa", Paper(0.62, 1.06, 31.11, 2.66), {"activated_layers": "lisa_activated_layers"}, changes=True
    ),
    Contender("Full", "full", Paper(0.54, 0.95, 73.53, 1.43, 7721.32)),
)

BY_TUNER = {one.tuner: one for one in CONTENDERS}


@dataclass(frozen=True)
class Claim:
    """What a method says of itself beside another one.

    Attributes:
        tuner, than: as `--tuner` has them.
        least, most: the quantity of `tuner` divided by that of `than` lies between them; None: no bound.
        says: the claim, and where it is made.
    """

    tuner: str
    quantity: Quantity
    than: str
    says: str
    least: float | None = None
    most: float | None = None

    @property
    def paper(self) -> float:
        """The same quotient in Table 4."""
        values = [getattr(BY_TUNER[name].paper, self.quantity) for name in (self.tuner, self.than)]
        return float(values[0] / values[1])

    def holds(self, ratio: float) -> bool:
        """Whether a measured quotient is what is claimed."""
        return (self.least is None or ratio >= self.least) and (self.most is None or ratio <= self.most)


SAME = 1.05
"""What is said to cost the same may cost so much more: allocators and clocks are not that exact."""


def _leaner_than_full(tuner: str, says: str) -> Claim:
    return Claim(tuner, "memory_gib", "full", says, most=1.0)


CLAIMS = (
    _leaner_than_full("lora", "less memory than full training (LoRA, arXiv 2106.09685, section 4.2)"),
    _leaner_than_full("dora", "LoRA's parameters and a magnitude for each column (DoRA, arXiv 2402.09353, section 4)"),
    _leaner_than_full("adalora", "a budget of parameters below that of full training (AdaLoRA, arXiv 2303.10512)"),
    _leaner_than_full("lora+", "at the cost of LoRA (LoRA+, arXiv 2402.12354)"),
    _leaner_than_full("rslora", "LoRA with another factor (rsLoRA, arXiv 2312.03732)"),
    _leaner_than_full("galore", "less memory for the optimizer than full training (GaLore, arXiv 2403.03507)"),
    _leaner_than_full("llamapro", "trains the added blocks only (LLaMA-Pro, arXiv 2401.02415, section 3.2)"),
    _leaner_than_full("lisa", "memory as of LoRA, all weights in turn (LISA, arXiv 2403.17919)"),
    Claim("q-galore", "memory_gib", "galore", "less memory than GaLore (Q-GaLore, arXiv 2407.08296)", most=1.0),
    Claim("lora+", "memory_gib", "lora", "at the cost of LoRA (LoRA+, arXiv 2402.12354)", most=SAME),
    Claim("lora+", "samples_per_s", "lora", "at the cost of LoRA (LoRA+, arXiv 2402.12354)", least=1 / SAME),
    Claim("rslora", "memory_gib", "lora", "LoRA with another factor (rsLoRA, arXiv 2312.03732)", most=SAME),
    Claim("rslora", "samples_per_s", "lora", "LoRA with another factor (rsLoRA, arXiv 2312.03732)", least=1 / SAME),
    Claim(
        "lora", "samples_per_s", "full", "a quarter faster than full training on GPT-3 (arXiv 2106.09685)", least=1.0
    ),
    Claim("lisa", "samples_per_s", "lora", "about 1.5 times as fast as LoRA (LISA, arXiv 2403.17919)", least=1.0),
    Claim("lisa", "samples_per_s", "full", "nearly 3 times as fast as full training (arXiv 2403.17919)", least=1.0),
    Claim("lisa", "memory_gib", "lora", "no more memory than LoRA (LISA, arXiv 2403.17919)", most=1.0),
)
"""Only what the methods' papers say; Table 4 itself contradicts one of them, which the report says beside it."""
