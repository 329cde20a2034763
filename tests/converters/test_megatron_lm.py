"""Megatron-LM's own loader, in the wheels of megatron-core from 0.17 on, takes arguments and weights from ours."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.convert import convert

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron.training") is None, reason="this megatron-core comes without Megatron-LM"
)

LOAD = """
import sys

checkpoint, hf = sys.argv[1:]
from swift_mega import compat

compat.install()
sys.argv = f'''load --load {checkpoint} --use-checkpoint-args --finetune --no-load-optim --no-load-rng
    --exit-on-missing-checkpoint --dist-ckpt-strictness raise_unexpected --ckpt-format torch_dist
    --distributed-backend gloo --transformer-impl local --use-cpu-initialization --micro-batch-size 1
    --tokenizer-type NullTokenizer --vocab-size 131 --no-gradient-accumulation-fusion --no-masked-softmax-fusion
    --no-bias-swiglu-fusion --no-bias-dropout-fusion --no-rope-fusion --no-persist-layer-norm'''.split()

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.training import checkpointing
from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args
from megatron.training.global_vars import set_args
from safetensors.torch import load_file

from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig

args, _ = checkpointing.load_args_from_checkpoint(parse_args())
validate_args(args)
set_args(args)
groups.initialize(ParallelConfig(), seed=1)
model = GPTModel(
    core_transformer_config_from_args(args),
    get_gpt_layer_local_spec(qk_layernorm=args.qk_layernorm, normalization=args.normalization),
    vocab_size=args.padded_vocab_size,
    max_sequence_length=args.max_position_embeddings,
    share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
    position_embedding_type=args.position_embedding_type,
)
checkpointing.load_checkpoint([model], None, None, strict=True)
found, expected = model.state_dict(), load_file(hf)
last = len(model.decoder.layers) - 1
for name, ours in {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    f"decoder.layers.{last}.self_attention.linear_proj.weight": f"model.layers.{last}.self_attn.o_proj.weight",
    f"decoder.layers.{last}.mlp.linear_fc2.weight": f"model.layers.{last}.mlp.down_proj.weight",
}.items():
    assert torch.equal(found[name][: len(expected[ours])], expected[ours].float()), name
print("the same weights")
"""


@pytest.mark.parametrize("variant", ["llama-bias", "llama-tied", "qwen3-tied"])
def test_megatron_lm_loads_it(variant: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    convert(hf_model(variant), tmp_path / "megatron")
    words = [str(tmp_path / "megatron"), str(hf_model(variant) / "model.safetensors")]
    done = subprocess.run([sys.executable, "-c", LOAD, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same weights" in done.stdout
