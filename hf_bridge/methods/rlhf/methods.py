"""The methods on preferences and rewards, by name. TRL is imported when one of them is used."""

import importlib
from collections.abc import Callable
from typing import Any

from hf_bridge.data.rows import Rows
from hf_bridge.methods.encode import Make, examples
from hf_bridge.methods.method import Method, Setup
from hf_bridge.methods.rlhf.examples import Judged, Pair, Prompt, Tokens, judged, pairs, prompts, taught


def _encoded(make: Make, kind: type) -> Callable[[Setup, Rows], Any]:
    return lambda setup, rows: examples(setup, rows, make, kind)


def _trainer(module: str) -> Callable[[Setup, Any, Any], Any]:
    def trainer(setup: Setup, train: Any, valid: Any) -> Any:
        return importlib.import_module(f"hf_bridge.methods.rlhf.{module}").trainer(setup, train, valid)

    return trainer


def _pairwise(name: str, module: str) -> Method:
    return Method(name, "causal_lm", True, _encoded(pairs, Pair), _trainer(module))


METHODS = {
    method.name: method
    for method in (
        _pairwise("dpo", "dpo"),
        _pairwise("ipo", "dpo"),
        _pairwise("cpo", "cpo"),
        _pairwise("simpo", "cpo"),
        _pairwise("orpo", "orpo"),
        Method("rm", "seq_cls", True, _encoded(pairs, Pair), _trainer("rm")),
        Method("kto", "causal_lm", True, _encoded(judged, Judged), _trainer("kto")),
        Method("gkd", "causal_lm", True, _encoded(taught, Tokens), _trainer("gkd")),
        Method("grpo", "causal_lm", False, _encoded(prompts, Prompt), _trainer("grpo")),
        Method("ppo", "causal_lm", False, _encoded(prompts, Prompt), _trainer("ppo")),
    )
}
"""By name."""
