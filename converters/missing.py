"""What megatron-core's GPT model has nothing for: named here once, met by a config's row, refused by training.

Such a model converts exactly, both ways, and none is built of it: one that computes something else than
its weights were trained for would be worse than none.
"""

from converters.config_table import MegatronArguments
from swift_mega.base.errors import UserError

MISSING: dict[str, str] = {
    "bidirectional attention": "attention to later tokens",
    "query scale": "queries whose size grows with the position (`llama_4_scaling_beta`)",
    "yarn partial": "YaRN for a part of each head, or for pairs of neighbours",
    "rope longrope": "a rotary embedding with a factor of its own for each frequency (longrope)",
    "rope llama3": "Llama 3's rotary scaling with other constants than 1, 4 and 8192",
    "softmax with bias": "choice of experts by softmax scores and a bias, as it has for sigmoid scores",
    "chunked attention": "attention within chunks of the sequence, and scores that grow with the position",
    "clip qkv": "limits of query, key and value (`clip_qkv`)",
    "rank of groups": "groups of experts ranked by another number of their best experts than top-k over chosen groups",
    "weight one": "one expert for each token, with the weight one whatever its score",
    "sigmoid sum": "sigmoid scores of several experts that do not add up to one, or of one expert that do",
    "latent halves": "a rotary embedding by halves (`rope_interleave` false) in latent attention",
    "latent rope linear": "latent attention with linear rotary scaling",
    "latent rope dynamic": "latent attention with dynamic rotary scaling",
    "latent rope llama3": "latent attention with Llama 3's rotary scaling",
    "latent rope longrope": "latent attention with longrope",
    "yarn untruncated": "YaRN without whole numbers as limits (`truncate` false) in latent attention",
    "mamba": "Mamba layers outside its MambaModel, which needs the kernels of mamba-ssm",
    "yarn factor": "YaRN with a factor of its own for queries and keys (attention_factor, mscale_all_dim alone)",
}
"""Name, as rows of the config table give it → the feature in words."""


def check_trainable(arguments: MegatronArguments) -> None:
    """Raises:
    UserError: the model needs what megatron-core does not have; names it.
    """
    if arguments.missing:
        lacks = "; ".join(MISSING[name] for name in arguments.missing)
        raise UserError(
            f"megatron-core's GPT model lacks what this model needs: {lacks}.",
            "It can be converted, and tuned with `swift-mega bridge`, but not trained with Megatron.",
        )
