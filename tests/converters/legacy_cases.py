"""What runs on every rank (tests/support/distributed.py): files of ranks written and read by megatron-core alone."""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

from converters import checkpoint
from tests.model.cases import loaded


def _file(root: Path) -> Path:
    """As Megatron-LM names the file of this rank (`get_checkpoint_name`)."""
    tensor, pipeline, expert = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
    )
    name = f"mp_rank_{tensor:02d}"
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        name += f"_{pipeline:03d}"
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        name += f"_{expert:03d}"
    return root / name / "model_optim_rng.pt"


def _states(chunks: list[Any]) -> dict[str, Any]:
    modules = unwrap_model(chunks)
    names = ["model"] if len(modules) == 1 else [f"model{number}" for number in range(len(modules))]
    return {name: module.state_dict() for name, module in zip(names, modules, strict=True)}


def save(hf: Path, layout: dict[str, Any], root: Path, model: dict[str, Any] | None = None) -> None:
    """A checkpoint at step 7 as Megatron-LM writes it, with what else such files have."""
    chunks = loaded(hf, layout, model)
    file = _file(root / "iter_0000007")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "args": argparse.Namespace(num_layers=4, params_dtype=torch.float32),
            "checkpoint_version": 3.0,
            "iteration": 7,
            **_states(chunks),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
            "rng_state": [{"torch_rng_state": torch.get_rng_state()}],
        },
        file,
    )
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        checkpoint.copy_hf_files(hf, root / "iter_0000007" / "hf")
        checkpoint.write_tracker(root, 7)


def loads_strictly(hf: Path, layout: dict[str, Any], root: Path) -> int:
    """Load a checkpoint of this layout into a model that had the weights of `hf`, and compare.

    Returns:
        How many tensors were compared.
    """
    chunks = loaded(hf, layout)
    expected = copy.deepcopy(_states(chunks))
    for module in chunks:
        for tensor in module.state_dict().values():
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(7)
    saved = torch.load(_file(root / "release"), weights_only=False)
    for name, module in zip(expected, unwrap_model(chunks), strict=True):
        module.load_state_dict(saved[name], strict=True)
    compared = 0
    for name, state in _states(chunks).items():
        for key, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, expected[name][key]), key
                compared += 1
    assert saved["args"].tensor_model_parallel_size == parallel_state.get_tensor_model_parallel_world_size()
    return compared
