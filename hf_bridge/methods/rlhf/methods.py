"""The methods on preferences and rewards, by name. TRL is imported when one of them is used."""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hf_bridge.data.rows import Rows
from hf_bridge.methods.encode import Make, examples
from hf_bridge.methods.method import Method, Setup
from hf_bridge.methods.rewards import registry
from hf_bridge.methods.rlhf.config import RlhfConfig
from hf_bridge.methods.rlhf.examples import Judged, Pair, Prompt, Tokens, judged, pairs, prompts, taught
from hf_bridge.methods.rlhf.options import check

if TYPE_CHECKING:
    from hf_bridge.methods.output import Outcome


def _encoded(make: Make, kind: type) -> Callable[[Setup, Rows], Any]:
    return lambda setup, rows: examples(setup, rows, make, kind)


def _trainer(module: str) -> Callable[[Setup, Any, Any], Any]:
    def trainer(setup: Setup, train: Any, valid: Any) -> Any:
        return importlib.import_module(f"hf_bridge.methods.rlhf.{module}").trainer(setup, train, valid)

    return trainer


def _pairwise(name: str, module: str) -> Method:
    return Method(name, "causal_lm", True, _encoded(pairs, Pair), _trainer(module))


def rlhf(config: RlhfConfig, callbacks: Sequence[Any] = ()) -> "Outcome":
    """Tune a model on preferences, rewards or a teacher, and say how it ended.

    Args:
        callbacks: your own, transformers' TrainerCallbacks, called after the run's.

    Raises:
        UserError: on every process, for anything the user can mend.
    """
    from hf_bridge.methods.run import run

    return run(config, method_of(config), callbacks)


def method_of(config: RlhfConfig) -> Method:
    """The method that a configuration asks for.

    Raises:
        UserError: it has an option that the method does not read, or lacks one that it needs.
    """
    check(config)
    return METHODS[config.method]


def _check_rewards(config: RlhfConfig, rows: Rows) -> None:
    for written in config.reward.rewards:
        registry.check(written, rows)


def _answers(config: RlhfConfig) -> int:
    """GRPO: of each question, and passes over them; TRL's defaults."""
    return (config.sampling.num_generations or 8) * (config.grpo.num_iterations or 1)


def _passes(config: RlhfConfig) -> int:
    """PPO: over each answer."""
    return config.ppo.num_ppo_epochs or 4


METHODS = {
    method.name: method
    for method in (
        _pairwise("dpo", "dpo"),
        _pairwise("ipo", "dpo"),
        _pairwise("cpo", "cpo"),
        _pairwise("simpo", "cpo"),
        _pairwise("orpo", "orpo"),
        Method("rm", "seq_cls", True, _encoded(pairs, Pair), _trainer("rm"), num_labels=1),
        Method("kto", "causal_lm", True, _encoded(judged, Judged), _trainer("kto")),
        Method("gkd", "causal_lm", True, _encoded(taught, Tokens), _trainer("gkd")),
        Method(
            "grpo",
            "causal_lm",
            False,
            _encoded(prompts, Prompt),
            _trainer("grpo"),
            visits=_answers,
            check=_check_rewards,
        ),
        Method(
            "ppo", "causal_lm", False, _encoded(prompts, Prompt), _trainer("ppo"), visits=_passes, check=_check_rewards
        ),
    )
}
"""By name."""
