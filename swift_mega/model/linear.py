"""Linear attention: megatron-core's gated delta net on its own tensor-parallel layers.

megatron-core has a spec of it for TransformerEngine's layers alone. There its norm has the zero-centred weight of all
other norms; transformers' model, and with it every checkpoint, has a plain one in this place.
"""

from megatron.core.ssm.gated_delta_net import GatedDeltaNet, GatedDeltaNetSubmodules
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from swift_mega.model.norm import RMSNorm


class HeadNorm(RMSNorm):
    """RMSNorm of each head, with a plain weight whatever the other norms have.

    The heads are split over the tensor-parallel ranks, so that each has the gradient of some; backward adds them up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, hidden_size, eps)
        self.zero_centered = False
        self.weight.data.fill_(1.0)
        self.weight.sequence_parallel = False  # type: ignore[attr-defined]

    def scale(self) -> Tensor:
        """What the normed vector is multiplied by."""
        weight: Tensor = copy_to_tensor_model_parallel_region(self.weight)
        return weight


def gated_delta_net() -> ModuleSpec:
    """What stands in the place of a layer's attention."""
    return ModuleSpec(
        module=GatedDeltaNet,
        submodules=GatedDeltaNetSubmodules(in_proj=ColumnParallelLinear, out_norm=HeadNorm, out_proj=RowParallelLinear),
    )
