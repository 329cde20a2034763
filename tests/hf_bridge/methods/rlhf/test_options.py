"""What each method reads, and what is refused by name."""

import dataclasses
from typing import Any

import pytest

from hf_bridge.methods.config import LengthConfig
from hf_bridge.methods.rlhf.config import RlhfConfig
from hf_bridge.methods.rlhf.methods import METHODS
from hf_bridge.methods.rlhf.options import OPTIONS, OURS, SECTIONS, arguments
from swift_mega.base.config import leaves
from swift_mega.base.errors import UserError


def config(method: str, **options: Any) -> RlhfConfig:
    made = RlhfConfig(model="m", output="o", method=method)  # type: ignore[arg-type]
    for name, value in options.items():
        section = next(one for one in SECTIONS if hasattr(getattr(made, one), name))
        setattr(getattr(made, section), name, value)
    return made


def test_every_option_is_read_by_some_method_and_every_method_reads_options_that_there_are() -> None:
    known = {leaf.path for leaf in leaves(RlhfConfig) if leaf.path.partition(".")[0] in SECTIONS}
    assert {option for options in OPTIONS.values() for option in options.reads} == known
    assert OPTIONS.keys() == METHODS.keys()


def test_names_are_those_of_the_trainers_arguments() -> None:
    import trl
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.gkd import GKDConfig
    from trl.experimental.orpo import ORPOConfig

    from hf_bridge.methods.rlhf.ppo import PPOConfig

    kinds = {"dpo": trl.DPOConfig, "ipo": trl.DPOConfig, "cpo": CPOConfig, "simpo": CPOConfig, "orpo": ORPOConfig}
    kinds |= {"kto": trl.KTOConfig, "rm": trl.RewardConfig, "gkd": GKDConfig, "grpo": trl.GRPOConfig, "ppo": PPOConfig}
    for method, options in OPTIONS.items():
        names = {field.name for field in dataclasses.fields(kinds[method])}
        assert {*options.reads.values(), *options.defaults} - {OURS} <= names, method


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("dpo", {}, {}),
        ("dpo", {"beta": 0.0}, {"beta": 0.0}),
        ("dpo", {"loss_type": ["hinge"]}, {"loss_type": ["hinge"]}),
        ("dpo", {"sft_weight": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ("ipo", {}, {"loss_type": ["ipo"]}),
        ("cpo", {"loss_type": ["ipo"], "sft_weight": 0.0}, {"loss_type": "ipo", "cpo_alpha": 0.0}),
        ("simpo", {"gamma": 0.5}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}),
        ("kto", {"ref_sync_steps": 5}, {"ref_model_sync_steps": 5, "sync_ref_model": True}),
        ("gkd", {"teacher": "t", "max_completion_length": 7}, {"max_new_tokens": 7}),
        ("grpo", {"rewards": ["format"], "loss_type": ["grpo"]}, {"loss_type": "grpo", "disable_dropout": True}),
        ("ppo", {"reward_model": "rm", "lam": 0.9}, {"lam": 0.9}),
    ],
)
def test_arguments(method: str, options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert arguments(config(method, **options)) == expected


@pytest.mark.parametrize(
    ("method", "options", "what", "fix"),
    [
        ("kto", {"gamma": 1.0}, "`--objective.gamma` is given, and `--method kto` does not read it", "It is for simpo"),
        ("orpo", {"loss_type": ["hinge"]}, "`--objective.loss_type` is given", "It is for dpo, cpo, kto, grpo"),
        ("rm", {"ref_model": "m"}, "`--reference.ref_model` is given", "leave it out"),
        ("dpo", {"wpo": True, "lam": 0.5}, "`--ppo.lam` is given", "It is for ppo"),
        ("dpo", {"loss_type": ["sigmoidal"]}, "has no loss `sigmoidal`", "did you mean `sigmoid`?"),
        ("kto", {"loss_type": ["kto", "apo_zero_unpaired"]}, "takes one loss, not 2", "Choose one"),
        ("dpo", {"loss_type": ["sigmoid"], "loss_weights": [1.0, 2.0]}, "2 `loss_weights` and 1", "one for each"),
        ("gkd", {}, "needs `--objective.teacher`", "--help"),
        ("grpo", {}, "needs `--reward.rewards` or `--reward.reward_model`", "--help"),
        ("dpo", {"ref_sync_steps": 3, "precompute_ref": True}, "both follow the policy and stay", "ref_sync_steps"),
    ],
)
def test_refused(method: str, options: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(UserError) as told:
        arguments(config(method, **options))
    assert what in told.value.what and fix in told.value.fix


def test_what_all_trainers_are_told_and_these_cannot_do() -> None:
    made = config("dpo")
    made.length = LengthConfig(packing=True)
    with pytest.raises(UserError, match=r"`--length.packing` cannot be had with `--method dpo`"):
        arguments(made)


def test_rows_of_an_epoch_are_counted_as_often_as_they_are_in_a_batch() -> None:
    assert METHODS["dpo"].visits(config("dpo")) == 1
    assert METHODS["grpo"].visits(config("grpo", num_generations=4, num_iterations=2)) == 8
    assert METHODS["ppo"].visits(config("ppo")) == 4
