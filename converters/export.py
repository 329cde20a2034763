"""A model of any format as its Hugging Face tensors: what they are, and the plan that fills them."""

from collections.abc import Mapping
from pathlib import Path

from converters.adapters import in_megatron_order, peft_tensors
from converters.families._common import EMBEDDING
from converters.hf import canonical, repeated
from converters.plan import Plan, make_plan
from converters.source import Source
from converters.space import Space
from converters.stores.safetensors import Place, SafetensorsFolder
from converters.tensors import TensorSpec
from converters.view import MegatronView, hf_tensors
from swift_mega.base.errors import UserError


def exported_tensors(source: Source, dtype: str | None = None) -> dict[str, TensorSpec]:
    """Hugging Face name, of an adapter PEFT's → shape and dtype, those included that Megatron has no place for.

    Args:
        source: the model or adapter.
        dtype: to cast the weights to. None: as stored.
    """
    dtypes = source.dtypes(dtype)
    if source.adaptable is not None:
        return peft_tensors(source, dtypes)
    weights = hf_tensors(source.family, source.arguments, dtypes, source.form)
    if source.view is not None and dtype is None:
        weights |= {name: spec for name, spec in source.view.store.tensors.items() if name in weights}
    return weights | {name: stored.spec for name, stored in source.set_aside.items()}


def export_plan(source: Source, places: Mapping[str, Place]) -> Plan:
    """What fills the tensors of `exported_tensors` at `places`, which may be files that are never written.

    Raises:
        UserError: the checkpoint is of another model than its config.json says.
    """
    back = {name: places[name].stored() for name in source.set_aside}
    if source.adaptable is not None:
        return make_plan(source.space | source.set_aside, in_megatron_order(source, places) | back)
    store = SafetensorsFolder(source.path, dict(places), writable=False).without(source.set_aside)
    view = MegatronView(source.family, source.config, store, source.space[EMBEDDING].spec.shape[0])
    _check_shapes(source.path, view, source.space)
    plan = make_plan(source.space | source.set_aside, canonical(view) | back)
    plan.moves.extend(repeated(plan.moves, view))
    return plan


def _check_shapes(folder: Path, view: MegatronView, space: Space) -> None:
    for key, stored in space.items():
        wanted = view.tensors[key].shape
        if stored.spec.shape != wanted:
            raise UserError(
                f"{folder}: `{key}` is {list(stored.spec.shape)}, with hf/config.json it would be {list(wanted)}.",
                "The checkpoint is of another model than hf/ says.",
            )
