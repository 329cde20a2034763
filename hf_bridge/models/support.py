"""Which quantisation is supported for what: Table 2 of the SWIFT paper (arXiv 2408.05517), and our names for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """What can be done with one way of quantising.

    Attributes:
        qat: names of `--loading.qat`, or why there are none.
        qlora: names of `--loading.quantization`; `folder` where a folder comes with such weights.
        ptq: whether the paper has it; quantising a trained model and writing it comes later.
    """

    qat: tuple[str, ...] | str
    qlora: tuple[str, ...]
    ptq: bool = False


FOLDER = ("folder",)

TABLE_2 = {
    "BNB": Support(("bnb-nf4", "bnb-fp4"), ("bnb-nf4", "bnb-fp4", "bnb-int8"), ptq=True),
    "HQQ": Support(("hqq-8", "hqq-4", "hqq-3", "hqq-2"), ("hqq-8", "hqq-4", "hqq-3", "hqq-2", "hqq-1")),
    "EETQ": Support("it rounds in kernels for GPUs that come from a hub, and has not been tried", ("eetq",)),
    "AWQ": Support((), FOLDER, ptq=True),
    "GPTQ": Support((), FOLDER, ptq=True),
    "AQLM": Support((), FOLDER),
    # Not in the paper.
    "torchao": Support(("torchao-int8-int4",), ("torchao-int8", "torchao-float8")),
}
"""QAT, QLoRA and PTQ of each."""
