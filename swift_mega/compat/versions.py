"""Which packages are here, in which versions, and which we need. Torch-free.

What is needed is not written a second time: it is read from our own package's metadata, that is from
pyproject.toml.
"""

from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

OPTIONAL = {
    "transformer-engine": "fused layers, FP8 on Hopper and later; without it megatron-core's layers, same results",
    "apex": "NVIDIA's fused Adam where TransformerEngine is absent; without both PyTorch's",
    "flash-attn": "attention kernels that TransformerEngine can use; PyTorch has its own",
    "tensorboard": "`tensorboard/` in the output folder; metrics.jsonl and loss.png need nothing",
    "wandb": "log.wandb_project",
    "modelscope-hub": "models and datasets written `ms::NAME`",
    "gguf": "reading GGUF models with transformers; `make demo` needs it",
    "bitsandbytes": "`--loading.quantization bnb-…`, optimizers in 8 bits",
    "hqq": "`--loading.quantization hqq-…`",
    "torchao": "`--loading.quantization torchao-…`",
    "scipy": "`--tuner loftq`",
    "deepspeed": "`--deepspeed zero1` to `zero3`; `--fsdp fsdp2` needs nothing",
    "ninja": "with a C++ compiler, what DeepSpeed builds when it runs on a CPU",
    "rouge-score": "ROUGE-L of answers, in `--predict-with-generate` and `bridge score-agent`",
    "gigatoken": "a faster tokenizer for `swift-mega data build`",
}
"""Package → what is lost without it."""


@dataclass(frozen=True)
class Package:
    """An installed or missing package."""

    name: str
    version: str | None
    """None: not installed."""
    wanted: str
    """The range we need, as in pyproject.toml; empty: any."""
    problem: str = ""
    """Why it cannot be used as it is, with the way out; empty: it can."""
    loss: str = ""
    """For an optional package, what is lost without it."""


def required() -> list[Package]:
    """What we cannot run without."""
    return [_package(requirement) for requirement in _requirements("")]


def optional() -> list[Package]:
    """What we use when it is there."""
    ranges = {need.name: need for extra in _extras() for need in _requirements(extra)}
    found = [_package(ranges.get(name, Requirement(name)), loss) for name, loss in OPTIONAL.items()]
    return [Package(p.name, p.version, p.wanted, _impostor(p) or p.problem, p.loss) for p in found]


def _package(requirement: Requirement, loss: str = "") -> Package:
    wanted = str(requirement.specifier)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        problem = "" if loss else f"is missing: pip install '{requirement.name}{wanted}'"
        return Package(requirement.name, None, wanted, problem, loss)
    # A local build (2.13.0+cpu) and a pre-release of the right version are what they say they are.
    fits = requirement.specifier.contains(version, prereleases=True)
    problem = "" if fits else f"{version} is outside {wanted}: pip install '{requirement.name}{wanted}'"
    return Package(requirement.name, version, wanted, problem, loss)


def _impostor(package: Package) -> str:
    """Two packages whose names promise more than is in them."""
    if package.version is None:
        return ""
    if package.name == "apex" and not _holds("apex", "apex/optimizers/"):
        return "is another project of that name, not NVIDIA's: pip uninstall apex"
    engines = ("transformer-engine-torch", "transformer_engine_torch")
    if package.name == "transformer-engine" and not any(map(_installed, engines)):
        return "is the empty package of that name: pip install 'swift-mega[te]' on a GPU image, or pip uninstall it"
    return ""


def _holds(name: str, folder: str) -> bool:
    files = metadata.files(name)
    return files is None or any(str(file).startswith(folder) for file in files)


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _requirements(extra: str) -> list[Requirement]:
    """The packages that `extra` needs, or with "" the ones always needed."""
    every = [Requirement(line) for line in metadata.requires("swift-mega") or []]
    always = [need for need in every if need.marker is None]
    return always if not extra else [need for need in every if need.marker and need.marker.evaluate({"extra": extra})]


def _extras() -> list[str]:
    return metadata.metadata("swift-mega").get_all("Provides-Extra") or []
