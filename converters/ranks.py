"""How megatron-core deals a model out to ranks: which tensor of which rank is which box of which whole tensor.

    pipeline   the layers are cut into runs, stage p with v virtual stages holds runs p, p + PP, p + 2·PP, …; those of
               the first and of the last stage may have a length of their own
    tensor     of a matrix each rank has a block of rows or columns; of gate and up, which are one, a block of each
    expert     each rank has a run of the experts of every layer

A rank counts layers and experts from its own first one. A *name* is a rank's, `decoder.layers.0.mlp.linear_fc2.weight`;
a *native* key has the same words with the numbers of the whole model.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from converters.key_forms import Part, canonical_part
from converters.rules import Rule, Sizes
from converters.space import Box
from converters.stages import Stages
from swift_mega.base.errors import UserError


class Rank(NamedTuple):
    """A place in the grid of a checkpoint's files."""

    tensor: int = 0
    pipeline: int = 0
    expert: int = 0


@dataclass(frozen=True)
class Spelling:
    """What the layers of one of megatron-core's two layer specs call their tensors, and how they cut them."""

    names: Mapping[str, str]
    """Words of a canonical key → theirs."""
    expert: str
    """How an expert's tensor is called."""
    axis: Mapping[str, int]
    """Last two words of a key → the axis that tensor-parallel ranks share; what is not here every rank has whole."""
    stateful: re.Pattern[str]
    """Modules that want an `_extra_state` when a state dict is loaded strictly."""


AXIS = {
    "word_embeddings.weight": 0,
    "output_layer.weight": 0,
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_proj.weight": 1,
    "core_attention.softmax_offset": 0,
    "linear_q_proj.weight": 0,
    "linear_q_up_proj.weight": 0,
    "linear_kv_up_proj.weight": 0,
    "linear_fc1.weight": 0,
    "linear_fc1.bias": 0,
    "linear_fc2.weight": 1,
    "eh_proj.weight": 0,
    "in_proj.weight": 0,
    "conv1d.weight": 0,
    "conv1d.bias": 0,
    "self_attention.A_log": 0,
    "self_attention.dt_bias": 0,
    "mixer.A_log": 0,
    "mixer.D": 0,
    "mixer.dt_bias": 0,
    "norm.weight": 0,
    "out_proj.weight": 1,
}

SPELLINGS = {
    "transformer_engine": Spelling(
        names={},
        expert="{tensor}{expert}",
        axis=AXIS,
        stateful=re.compile(r"(^|\.)(linear_\w+|fc\d_latent_proj|\w+norm|in_proj|out_proj|eh_proj|output_layer)$"),
    ),
    "local": Spelling(
        names={
            "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
            "self_attention.in_proj.layer_norm_": "input_layernorm.",
            "mixer.in_proj.layer_norm_": "norm.",
            "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
            "self_attention.linear_q_up_proj.layer_norm_": "self_attention.q_layernorm.",
            "self_attention.linear_kv_up_proj.layer_norm_": "self_attention.kv_layernorm.",
        },
        expert="local_experts.{expert}.{tensor}",
        axis={**AXIS, "linear_q_down_proj.weight": 0, "linear_kv_down_proj.weight": 0},
        stateful=re.compile(r"(^|\.)(linear_\w+|in_proj|out_proj|eh_proj|output_layer)$"),
    ),
}
"""By the name of the layer spec."""

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(?:local_experts\.(\d+)\.(linear_fc\d\.\w+)|(linear_fc\d\.[a-z_]+)(\d+))$")


def native_key(name: str, first_layer: int, first_expert: int) -> str:
    """A rank's name with the numbers of the whole model."""

    def layer(found: re.Match[str]) -> str:
        return f"decoder.layers.{first_layer + int(found[1])}."

    def expert(found: re.Match[str]) -> str:
        return f".experts.experts.{first_expert + int(found[1] or found[4])}.{found[2] or found[3]}"

    name = name.replace(".mtp_model_layer.", ".transformer_layer.")  # what megatron-core calls it from 0.17 on
    return _EXPERT.sub(expert, _LAYER.sub(layer, name))


def part_of(native: str, wanted: Collection[str]) -> Part | None:
    """What a native key, in the words of either layer spec, is of the canonical keys `wanted`. None: nothing."""
    others = (native.replace(theirs, own) for own, theirs in SPELLINGS["local"].names.items() if theirs in native)
    found = (canonical_part(name, wanted) for name in (native, *others))
    return next((part for part in found if part), None)


def first_layers(runs: Sequence[Sequence[int]]) -> dict[tuple[int, int], int]:
    """(stage, virtual stage) → number of its first layer, from the number of layers that each holds."""
    found, first = {}, 0
    for virtual in range(max(map(len, runs))):
        for stage, own in enumerate(runs):
            found[stage, virtual] = first
            first += own[virtual]
    return found


class Cut(NamedTuple):
    """A box of a whole tensor that lies in a row of a rank's tensor."""

    offset: Box
    shape: Box
    within: Box
    """Where the box begins in the rank's tensor."""


def cuts(whole: Box, axis: int | None, number: int, count: int, fragments: int) -> Iterator[Cut]:
    """What rank `number` of `count` has of a tensor that is cut along `axis`; None: everything.

    Along the rows the tensor consists of `fragments` equal blocks, each of which is cut by itself.
    """
    if axis is None or count == 1:
        yield Cut((0,) * len(whole), whole, (0,) * len(whole))
        return
    blocks = fragments if axis == 0 else 1
    size = whole[axis] // blocks // count
    for block in range(blocks):
        first = block * (whole[axis] // blocks) + number * size
        yield Cut(
            _at(whole, axis, first, 0), (*whole[:axis], size, *whole[axis + 1 :]), _at(whole, axis, block * size, 0)
        )


def _at(whole: Box, axis: int, first: int, rest: int) -> Box:
    return tuple(first if own == axis else rest for own in range(len(whole)))


def shared_axis(whole: Box, part: Box, most: int) -> tuple[int | None, int]:
    """Along which axis `part` is one of how many parts of `whole`, of `most` at most.

    Raises:
        ValueError: it is none.
    """
    differing = [axis for axis, (size, own) in enumerate(zip(whole, part, strict=True)) if size != own]
    if not differing:
        return None, 1
    (axis, *more) = differing
    if more or not part[axis] or whole[axis] % part[axis] or whole[axis] > most * part[axis]:
        raise ValueError(f"{list(part)} is no part of {list(whole)}")
    return axis, whole[axis] // part[axis]


def chunks(rule: Rule, whole: Box) -> Iterator[tuple[Box, Box]]:
    """(offset, shape) of the boxes in which megatron-core stores a tensor on one rank: a layer, or a part of it."""
    depth = len(rule.stack)
    for position in product(*map(range, whole[:depth])):
        rows, *columns = whole[depth:]
        for block in range(rule.fragments):
            size = rows // rule.fragments
            yield (*position, block * size, *(0,) * len(columns)), (*(1,) * depth, size, *columns)


@dataclass(frozen=True)
class Grid:
    """How many ranks a model is dealt out to."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    expert: int = 1
    spelling: str = "transformer_engine"
    first: int | None = None
    last: int | None = None
    """Layers of the first and of the last pipeline stage. None: as many as the others."""

    @property
    def stages(self) -> Stages:
        """Its pipeline."""
        return Stages(self.pipeline, self.virtual, self.first, self.last)

    def check(self, arguments: MegatronArguments) -> None:
        """Whether layers, heads and experts can be dealt out, as megatron-core does it.

        Raises:
            UserError: they cannot.
        """
        if self.virtual > 1 and arguments.hybrid_override_pattern is not None:
            raise UserError(
                f"--target-vpp is {self.virtual}, and this model has Mamba layers: megatron-core's MambaModel has no "
                "virtual pipeline stages.",
                "Leave it out; --target-pp works.",
            )
        self.stages.check(arguments.num_layers)
        if misfits := [f"{count} {what}" for what, count in _shared(arguments).items() if count % self.tensor]:
            raise UserError(
                f"--target-tp is {self.tensor}, and tensor-parallel ranks cannot share {' and '.join(misfits)}.",
                "Choose a --target-tp that divides them.",
            )
        groups = arguments.num_query_groups
        if groups % self.tensor and self.tensor % groups and _attends(arguments):
            raise UserError(
                f"--target-tp is {self.tensor}, and the model has {groups} key-value heads.",
                "Choose a divisor or a multiple of their number.",
            )
        experts = arguments.num_moe_experts
        if self.expert > 1 and (experts is None or experts % self.expert):
            has = "no experts" if experts is None else f"{experts} experts"
            raise UserError(f"--target-ep is {self.expert}, the model has {has}.", "Choose a divisor of their number.")

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """As Megatron-LM calls them."""
        return {
            "tensor_model_parallel_size": self.tensor,
            "pipeline_model_parallel_size": self.pipeline,
            "virtual_pipeline_model_parallel_size": self.virtual if self.virtual > 1 else None,
            "decoder_first_pipeline_num_layers": self.first,
            "decoder_last_pipeline_num_layers": self.last,
            "expert_model_parallel_size": self.expert,
            "expert_tensor_parallel_size": self.tensor,
            "transformer_impl": self.spelling,
            "ckpt_format": "torch",
        }

    @property
    def ranks(self) -> list[Rank]:
        """All of them."""
        return [Rank(*place) for place in product(range(self.tensor), range(self.pipeline), range(self.expert))]


def _attends(arguments: MegatronArguments) -> bool:
    """Whether some layer has attention over all tokens: those of a hybrid model are `*`."""
    return arguments.hybrid_override_pattern is None or "*" in arguments.hybrid_override_pattern


def _shared(arguments: MegatronArguments) -> dict[str, int]:
    """What → how many of it, all of which tensor-parallel ranks share equally."""
    linear = arguments.linear_attention_freq is not None
    mamba = arguments.hybrid_override_pattern is not None
    counts = {
        "attention heads": arguments.num_attention_heads if _attends(arguments) else None,
        "key heads of linear attention": arguments.linear_num_key_heads if linear else None,
        "value heads of linear attention": arguments.linear_num_value_heads if linear else None,
        "heads of Mamba layers": arguments.mamba_num_heads if mamba else None,
        "groups of Mamba layers": arguments.mamba_num_groups if mamba else None,
    }
    return {what: count for what, count in counts.items() if count is not None}


class Held(NamedTuple):
    """A tensor of some ranks: the ranks, the whole tensor it is a part of, and which part.

    Several of one name are one tensor of the rank, one below the other.
    """

    name: str
    key: str
    """Canonical."""
    position: Box
    """On the leading axes of the canonical tensor."""
    stage: int
    virtual: int
    expert: int | None
    """The expert rank that has it. None: all."""
    axis: int | None


def dealt_out(rules: Mapping[str, Rule], sizes: Sizes, arguments: MegatronArguments, grid: Grid) -> Iterator[Held]:
    """Every tensor that ranks of `grid` have, in the order of the rules."""
    last = (grid.pipeline - 1, grid.virtual - 1)
    for rule in rules.values():
        for position in product(*(range(sizes[name]) for name in rule.stack)):
            yield from _held(rule, dict(zip(rule.stack, position, strict=True)), position, arguments, grid)
    if grid.pipeline > 1 and not arguments.untie_embeddings_and_output_weights:
        yield Held(OUTPUT, EMBEDDING, (), *last, None, 0)
    if grid.pipeline > 1 and arguments.mtp_num_layers:
        yield Held(EMBEDDING, EMBEDDING, (), *last, None, 0)


def _held(
    rule: Rule, numbers: Mapping[str, int], position: Box, arguments: MegatronArguments, grid: Grid
) -> Iterator[Held]:
    spelling = SPELLINGS[grid.spelling]
    stage, virtual, name = _place(rule.whole, numbers.get("layer"), arguments, grid)
    axis = spelling.axis.get(".".join(rule.whole.split(".")[-2:]))
    for own, theirs in spelling.names.items():
        name = name.replace(own, theirs)
    owner = None
    if (number := numbers.get("expert")) is not None:
        here = (arguments.num_moe_experts or 0) // grid.expert
        owner, local = divmod(number, here)
        before, _, tensor = name.rpartition(".experts.")
        name = f"{before}.{spelling.expert.format(expert=local, tensor=tensor)}"
    yield Held(name, rule.megatron, position, stage, virtual, owner, axis)


def _place(key: str, layer: int | None, arguments: MegatronArguments, grid: Grid) -> tuple[int, int, str]:
    """Stage, virtual stage and name of a tensor, but for the number of its expert."""
    found = _LAYER.match(key)
    if layer is None and not found:
        first = key == EMBEDDING
        return 0 if first else grid.pipeline - 1, 0 if first else grid.virtual - 1, key
    if layer is None:
        assert found is not None
        layer, rest = int(found[1]), key[found.end() :]
    else:
        rest = key.removeprefix("decoder.layers.")
    stage, virtual, number = layer_places(arguments.num_layers, grid)[layer]
    return stage, virtual, f"decoder.layers.{number}.{rest}"


@cache
def layer_places(num_layers: int, grid: Grid) -> list[tuple[int, int, int]]:
    """Of each layer: stage, virtual stage and its number there."""
    own = [layers // grid.virtual for layers in grid.stages.layers(num_layers)]
    firsts = first_layers([[layers] * grid.virtual for layers in own])
    return [(stage, virtual, number) for stage, virtual in firsts for number in range(own[stage])]


def shard(held: Held, whole: Box, grid: Grid, rank: Rank, fragments: int) -> tuple[Box, list[Cut]]:
    """Shape of a rank's tensor, and what of the whole one (without leading axes) it has.

    Raises:
        UserError: the tensor cannot be cut equally.
    """
    if held.axis is None or grid.tensor == 1:
        return whole, list(cuts(whole, None, 0, 1, 1))
    blocks = fragments if held.axis == 0 else 1
    if whole[held.axis] % (blocks * grid.tensor):
        raise UserError(
            f"`{held.key}` has {whole[held.axis] // blocks} rows or columns to share among TP {grid.tensor} ranks, "
            f"{whole[held.axis] // blocks % grid.tensor} left over.",
            "Choose a --target-tp that divides it.",
        )
    size = whole[held.axis] // grid.tensor
    own = (*whole[: held.axis], size, *whole[held.axis + 1 :])
    return own, list(cuts(whole, held.axis, rank.tensor, grid.tensor, fragments))


def stateful_modules(names: Sequence[str], grid: Grid, is_last: bool) -> list[str]:
    """Names of the `_extra_state` that strict loading wants of a rank with tensors `names`."""
    spelling = SPELLINGS[grid.spelling]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    if is_last:
        modules["output_layer"] = None
    return [f"{module}._extra_state" for module in modules if spelling.stateful.search(module)]
