"""Ministral 3 (text): Llama's tensors; queries that grow with the position, which megatron-core has nothing for."""

from converters.config_table import HeadSize, KeyValueHeads, Same
from converters.families._common import CONFIG, DENSE, RECOMPUTABLE, changed
from converters.family import Family
from converters.rope_table import Rope
from converters.window_table import Window

FAMILY = Family(
    name="ministral3",
    architectures=("Ministral3ForCausalLM",),
    config=changed(
        CONFIG,
        Same("rms_norm_eps", "norm_epsilon", default=1e-5),
        HeadSize(default=128),
        KeyValueHeads(default=8),
        Rope(
            base=1_000_000.0,
            absent={
                "type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        ),
        Window(default=None),
    ),
    rules=DENSE,
    recomputable=RECOMPUTABLE,
)
