"""Does a parallel layout fit the model, the batch and the number of processes? Torch-free.

Asked before anything is built, so that a wrong number costs a second and not a queue slot. Every
message has the arithmetic and the numbers that would work.
"""

from collections.abc import Iterable, Iterator

from converters.config_table import MegatronArguments
from swift_mega.base.errors import UserError
from swift_mega.parallel.config import ParallelConfig

TP, PP, VPP = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
)
EP, ETP = "expert_model_parallel_size", "expert_tensor_parallel_size"


def check_layout(parallel: ParallelConfig, arguments: MegatronArguments, world_size: int) -> None:
    """Whether the model can be cut this way over `world_size` processes.

    Raises:
        UserError: it cannot; says which sizes can.
    """
    _check_positive(parallel, world_size)
    _check_tensor_parallel(parallel, arguments)
    _check_pipeline(parallel, arguments)
    _check_experts(parallel, arguments, world_size)
    _check_switches(parallel)
    data_parallel_size(parallel, world_size)


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """What the processes leave for data parallelism: world size over TP × PP.

    Raises:
        UserError: TP × PP does not divide the world size.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    if world_size % (tp * pp):
        possible = _multiples(tp * pp, world_size)
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        raise UserError(
            f"{processes} cannot be split into TP {tp} × PP {pp} = {tp * pp} ranks per model copy.",
            f"Start {possible} processes, or choose {TP} × {PP} among {_some(_divisors(world_size))}.",
        )
    return world_size // (tp * pp)


def check_batch(parallel: ParallelConfig, world_size: int, micro_batch_size: int, global_batch_size: int) -> int:
    """The number of micro batches per step and rank.

    Raises:
        UserError: the global batch is no multiple of micro batch × DP, or too few micro batches for VPP.
    """
    dp, pp = data_parallel_size(parallel, world_size), parallel.pipeline_model_parallel_size
    for name, size in (("micro_batch_size", micro_batch_size), ("global_batch_size", global_batch_size)):
        if size < 1:
            raise UserError(f"{name} is {size}.", "It must be at least 1.")
    unit = micro_batch_size * dp
    if global_batch_size % unit:
        raise UserError(
            f"global_batch_size {global_batch_size} is no multiple of "
            f"micro_batch_size {micro_batch_size} × DP {dp} = {unit}.",
            f"Nearest that work: {_multiples(unit, global_batch_size)}.",
        )
    micro_batches = global_batch_size // unit
    if parallel.virtual_pipeline_model_parallel_size is not None and micro_batches % pp:
        raise UserError(
            f"the interleaved schedule needs a multiple of PP {pp} micro batches per step; global_batch_size "
            f"{global_batch_size} / (micro_batch_size {micro_batch_size} × DP {dp}) = {micro_batches}.",
            f"Nearest global_batch_size that work: {_multiples(unit * pp, global_batch_size)}; or leave {VPP} out.",
        )
    return micro_batches


def check_sequence_length(parallel: ParallelConfig, arguments: MegatronArguments, sequence_length: int) -> None:
    """Whether the model knows that many positions and sequence parallelism can cut them.

    Raises:
        UserError: too long for the model, or not divisible by TP with sequence parallelism.
    """
    longest, tp = arguments.max_position_embeddings, parallel.tensor_model_parallel_size
    if not 1 <= sequence_length <= longest:
        raise UserError(
            f"sequence_length {sequence_length} is outside the model's positions: max_position_embeddings {longest}.",
            f"Choose 1 to {longest}.",
        )
    if parallel.sequence_parallel and sequence_length % tp:
        raise UserError(
            f"sequence_parallel cuts the sequence over TP {tp} ranks, and sequence_length {sequence_length} / {tp} "
            f"leaves {sequence_length % tp} tokens over.",
            f"Nearest that work: {_multiples(tp, sequence_length)}.",
        )


def tensor_parallel_sizes(arguments: MegatronArguments) -> list[int]:
    """Every TP size that the model's heads, KV heads and matrices allow."""
    return [size for size in _divisors(arguments.num_attention_heads) if not list(_misfits(arguments, size))]


def _check_positive(parallel: ParallelConfig, world_size: int) -> None:
    sizes = {"world size": world_size} | {name: getattr(parallel, name) for name in (TP, PP, VPP, EP, ETP)}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"{name} is {size}.", "It must be at least 1.")


def _check_tensor_parallel(parallel: ParallelConfig, arguments: MegatronArguments) -> None:
    tp = parallel.tensor_model_parallel_size
    misfits = list(_misfits(arguments, tp))
    if misfits:
        raise UserError(
            f"{TP} {tp} does not fit this model: {'; '.join(misfits)}.",
            f"Sizes that work: {_some(tensor_parallel_sizes(arguments))}.",
        )


def _misfits(arguments: MegatronArguments, tp: int) -> Iterator[str]:
    """What a TP size cannot divide, as arithmetic."""
    heads, groups, ffn = arguments.num_attention_heads, arguments.num_query_groups, arguments.ffn_hidden_size
    rows = (heads * (2 if arguments.attention_output_gate else 1) + 2 * groups) * arguments.kv_channels
    latent = (arguments.kv_lora_rank or 0) + (arguments.qk_pos_emb_head_dim or 0)
    if heads % tp:
        yield f"{heads} attention heads / {tp} leaves {heads % tp}"
    if latent:
        rows, groups = 0, heads
    if latent % tp:
        yield f"{latent} rows of the projection to the latent key and value / {tp} leaves {latent % tp}"
    if (arguments.q_lora_rank or 0) % tp:
        yield f"rank {arguments.q_lora_rank} of the query / {tp} leaves {(arguments.q_lora_rank or 0) % tp}"
    if (arguments.moe_shared_expert_intermediate_size or 0) % tp:
        shared = arguments.moe_shared_expert_intermediate_size or 0
        yield f"shared expert size {shared} / {tp} leaves {shared % tp}"
    linear = arguments.linear_attention_freq is not None
    for what, count in ("key", arguments.linear_num_key_heads or 0), ("value", arguments.linear_num_value_heads or 0):
        if linear and count % tp:
            yield f"{count} {what} heads of linear attention / {tp} leaves {count % tp}"
    if groups % tp and tp % groups:
        yield f"{groups} key-value heads and {tp} ranks do not divide one another"
    if rows % tp:
        yield f"{rows} rows of the q, k and v projection / {tp} leaves {rows % tp}"
    if ffn % tp:
        yield f"ffn size {ffn} / {tp} leaves {ffn % tp}"


def _check_pipeline(parallel: ParallelConfig, arguments: MegatronArguments) -> None:
    pp, vpp, layers = (
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size,
        arguments.num_layers,
    )
    if layers % pp:
        raise UserError(
            f"{PP} {pp} does not divide {layers} layers: {layers % pp} left over.",
            f"Sizes that work: {_some(_divisors(layers))}.",
        )
    if vpp is None:
        return
    if pp == 1 or vpp == 1:
        raise UserError(
            f"{VPP} {vpp} with {PP} {pp} interleaves nothing.",
            f"Give {PP} of at least 2 and {VPP} of at least 2, or leave the latter out.",
        )
    if layers % (pp * vpp):
        possible = [size for size in _divisors(layers // pp) if size > 1]
        raise UserError(
            f"PP {pp} × VPP {vpp} = {pp * vpp} runs of layers do not divide {layers} layers.",
            f"{VPP} that work with PP {pp}: {_some(possible) if possible else 'none; leave it out'}.",
        )


def _check_experts(parallel: ParallelConfig, arguments: MegatronArguments, world_size: int) -> None:
    ep, experts = parallel.expert_model_parallel_size, arguments.num_moe_experts
    etp = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    if experts is None:
        if ep > 1 or parallel.expert_tensor_parallel_size is not None:
            raise UserError(
                f"{EP} {ep} and {ETP} {parallel.expert_tensor_parallel_size}, but the model has no experts.",
                "Leave both out.",
            )
        return
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        raise UserError(
            f"{TP} is {parallel.tensor_model_parallel_size} for a model with experts, which megatron-core splits so "
            "only with sequence_parallel.",
            "Switch sequence_parallel on.",
        )
    if arguments.add_bias_linear and etp > 1:
        raise UserError(
            f"the experts have biases, which megatron-core does not split over {ETP} {etp} ranks.",
            f"Set {ETP} to 1 and {EP} to at least 2.",
        )
    if ep == 1 and etp != parallel.tensor_model_parallel_size:
        raise UserError(
            f"{ETP} {etp} differs from {TP} {parallel.tensor_model_parallel_size} with {EP} 1; megatron-core "
            "would not add up the gradients of the experts.",
            f"Leave {ETP} out, or give {EP} of at least 2.",
        )
    if experts % ep:
        raise UserError(
            f"{EP} {ep} does not divide {experts} experts: {experts % ep} left over.",
            f"Sizes that work: {_some(_divisors(experts))}.",
        )
    size = arguments.moe_ffn_hidden_size or 0
    if size % etp:
        raise UserError(
            f"expert size {size} / {ETP} {etp} leaves {size % etp}.", f"Sizes that work: {_some(_divisors(size))}."
        )
    unit = etp * ep * parallel.pipeline_model_parallel_size
    if world_size % unit:
        raise UserError(
            f"{world_size} processes cannot be split into {ETP} {etp} × EP {ep} × PP "
            f"{parallel.pipeline_model_parallel_size} = {unit} ranks.",
            f"Start {_multiples(unit, world_size)} processes, or choose a smaller {EP}.",
        )


def _check_switches(parallel: ParallelConfig) -> None:
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        raise UserError(
            f"sequence_parallel splits the sequence over the TP ranks, and {TP} is 1.",
            f"Give {TP} of at least 2, or leave sequence_parallel out.",
        )
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        raise UserError(
            "overlap_param_gather needs overlap_grad_reduce, whose buckets it gathers.",
            "Switch both on, or both off.",
        )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _multiples(unit: int, near: int) -> str:
    """The multiples of `unit` on both sides of `near`."""
    below = near // unit * unit
    return " or ".join(str(size) for size in (below, below + unit) if size > 0)


def _some(sizes: Iterable[int], most: int = 12) -> str:
    sizes = list(sizes)
    return ", ".join(map(str, sizes[:most])) + (", …" if len(sizes) > most else "")
