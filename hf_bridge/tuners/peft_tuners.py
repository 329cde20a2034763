"""The tuners that PEFT has: each a declaration, all attached by the same few lines."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.adalora import WHEN_TRAINING_BEGINS, AdaLoraCallback, averages
from hf_bridge.tuners.beginnings import START, apart, doubled, joined, put_beside
from hf_bridge.tuners.folder import check_fit
from hf_bridge.tuners.peft_guidance import guide_layers, guide_model
from hf_bridge.tuners.targets import ALL_LINEAR, IN_TUNERS, linear_names, names_of
from hf_bridge.tuners.tuner import Attached, Tuner
from swift_mega.base.errors import UserError

WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.safetensors"
"""Beside PEFT's files where these are not enough to train on."""

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""How the name of a transformers model ends → PEFT's task, for which its PeftModel may train the head, too."""


_ADDING = {"LORA", "ADALORA", "IA3", "VERA", "FOURIERFT", "LOHA", "LOKR", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"}
"""PEFT's types whose layers change what the layer in them gives, whatever that is; so they may lie in each other."""


LOFTQ = {"loftq_bits": 4, "loftq_iter": 1}
"""PEFT's own defaults, which it does not take by itself."""


class PeftAttached(Attached):
    """A tuner of PEFT.

    Attributes:
        host: the PeftModel of all adapters of this type on the model. Several of different types lie in each other's
            layers, with a PeftModel each over the same model.
    """

    def __init__(self, model: nn.Module, name: str, config: PeftConfig, activation: Activation) -> None:
        super().__init__(model, name, config)
        own = copy.deepcopy(config)
        # What a subclass of ours adds, PEFT neither needs nor saves.
        own.__class__ = next(one for one in type(own).__mro__ if one.__module__.startswith("peft."))
        own.task_type = own.task_type or _task(model)
        if getattr(own, "target_modules", None) == ALL_LINEAR:
            own.target_modules = linear_names(model)
        elif getattr(own, "exclude_modules", ()) is None and any(IN_TUNERS.fullmatch(one) for one in names_of(model)):
            own.exclude_modules = IN_TUNERS.pattern
        before = {id(parameter) for parameter in model.parameters()}
        originals = _Originals(model, own)
        model.requires_grad_(False)
        try:
            self.host = _host(model, name, own, activation)
        except (ValueError, TypeError) as error:
            kind = str(own.peft_type.value).lower()
            raise UserError(f"PEFT refuses the options of `{kind}`: {error}") from error
        self._replaced = originals.changed()
        self._begun = bool(self._replaced) and _is_difference(own)
        if self._begun:
            originals.put_back()
            put_beside(self.host, name)
            self._replaced = []
        guide_layers(model, activation)
        self.switchable = not self._replaced
        layers = self.host.prompt_encoder[name] if own.is_prompt_learning else model
        self._parameters = {
            parameter_name: parameter
            for parameter_name, parameter in layers.named_parameters()
            if parameter.requires_grad
            or (own.inference_mode and id(parameter) not in before and START not in parameter_name)
        }

    @property
    def peft_config(self) -> PeftConfig:
        """As PEFT completed it: modules by name."""
        return self.host.peft_config[self.name]

    def parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def detach(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which adapter is active instead is not PEFT's to choose
            for name in (self.name, self.name + START) if self._begun else (self.name,):
                self.host.delete_adapter(name)
        _unwrap(self.model)
        with torch.no_grad():
            for parameter, original in self._replaced:
                parameter.copy_(original)
        if not self.host.peft_config:
            hosts(self.model).pop(self.host.peft_type)
            self.model.__dict__.pop("peft_config", None)

    def conflict(self, other: Attached) -> str | None:
        if not isinstance(other, PeftAttached):
            return None
        if other.peft_config.is_prompt_learning:
            return "both put virtual tokens before the input" if self.peft_config.is_prompt_learning else None
        if self.peft_config.peft_type not in _ADDING:
            return f"{self.peft_config.peft_type.value} computes from the base's own weights, past what others add"
        both = _saved_whole(self.model, {self.name, other.name})
        return both and f"both have a `{both}` of their own in the place of the model's"

    def _state(self, adapter: str) -> dict[str, torch.Tensor]:
        """What PEFT saves of one of its adapters; `_plain` makes a key what it is in a model with no other tuner."""
        others = {name for host in hosts(self.model).values() for name in host.peft_config} - {adapter}
        state = self.host.state_dict()
        mine = {key: state[key] for key in state if not others & set(key.split("."))}
        # PEFT looks for resized embeddings in the base's config at the hub otherwise.
        return dict(get_peft_model_state_dict(self.host, mine, adapter, save_embedding_layers=False))

    def save(self, folder: Path) -> None:
        """Write a PEFT folder, as PeftModel.save_pretrained writes it for a model with no other tuner."""
        folder.mkdir(parents=True, exist_ok=True)
        state, config = self._state(self.name), copy.copy(self.peft_config)
        if self._begun:
            state, config = joined(state, self._state(self.name + START)), doubled(config)
        state = {_plain(key): tensor.detach().contiguous().clone() for key, tensor in state.items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config.inference_mode = True
        if getattr(config, "exclude_modules", None) == IN_TUNERS.pattern:
            config.exclude_modules = None
        config.base_model_name_or_path = getattr(self.model, "name_or_path", None) or None
        base = type(self.model)
        mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        config.save_pretrained(str(folder), auto_mapping_dict=None if config.task_type else mapping)
        if self._leaves_out and not self.peft_config.inference_mode:
            state = {name: tensor.detach().contiguous().clone() for name, tensor in self._training_state().items()}
            save_file(state, folder / TRAINING)

    def load(self, folder: Path) -> None:
        if self._leaves_out and not self.peft_config.inference_mode:
            self._load_training_state(folder)
            return
        saved = load_peft_weights(str(folder), device="cpu")
        if self._begun and load_config(folder).init_lora_weights is True:
            saved, start = apart(saved)
            self._put(folder, start, self.name + START)
        self._put(folder, saved, self.name)

    def _put(self, folder: Path, saved: dict[str, torch.Tensor], adapter: str) -> None:
        own = self._state(adapter)
        if not getattr(self.peft_config, "rank_pattern", None):  # AdaLoRA's matrices take the shapes that it found
            check_fit(folder, saved, {_plain(key): tensor for key, tensor in own.items()})
        nested = {_plain(key): key for key in own}
        saved = {nested[key]: tensor for key, tensor in saved.items()}
        set_peft_model_state_dict(self.host, saved, adapter_name=adapter)

    @property
    def _leaves_out(self) -> bool:
        """PEFT saves what an encoder computes instead of the encoder, and AdaLoRA's matrices without what is masked."""
        config = self.peft_config
        encoder = config.peft_type == "P_TUNING" or getattr(config, "prefix_projection", False)
        return bool(encoder) or config.peft_type == "ADALORA"

    def _training_state(self) -> dict[str, torch.Tensor]:
        """All that training goes on from."""
        state: dict[str, torch.Tensor] = dict(self.parameters())
        if isinstance(self.peft_config, peft.AdaLoraConfig):
            state |= averages(self.host)
        return {_plain(name).replace(f".{self.name}", ""): tensor for name, tensor in state.items()}

    def _load_training_state(self, folder: Path) -> None:
        if not (folder / TRAINING).is_file():
            raise UserError(
                f"{folder} has no {TRAINING}: what it has is what `{self.name}` computes, not what it is trained by.",
                "Load it to be used: trainable=False.",
            )
        if isinstance(self.peft_config, peft.AdaLoraConfig):
            self.peft_config.rank_pattern = load_config(folder).rank_pattern
        saved, own = load_file(folder / TRAINING), self._training_state()
        check_fit(folder / TRAINING, saved, own)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def callbacks(self) -> list[Any]:
        return [AdaLoraCallback(self.host)] if isinstance(self.peft_config, peft.AdaLoraConfig) else []


def _saved_whole(model: nn.Module, names: set[str]) -> str | None:
    """The first module that all of `names` have trained whole."""
    modules = model.named_modules()
    return next(
        (path for path, one in modules if isinstance(one, AuxiliaryTrainingWrapper) and names <= one._adapters), None
    )


def hosts(model: nn.Module) -> dict[str, PeftModel]:
    """The PeftModels over `model`, by PEFT's type."""
    found: dict[str, PeftModel] = model.__dict__.setdefault("_peft_hosts", {})
    return found


def adapters_on(model: nn.Module) -> set[str]:
    """The names of PEFT's adapters on the model, whoever has put them there."""
    found = {name for host in hosts(model).values() for name in host.peft_config}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            found |= set(module._all_available_adapter_names())
    return found


def _host(model: nn.Module, name: str, config: PeftConfig, activation: Activation) -> PeftModel:
    """The PeftModel that has the new adapter."""
    known = hosts(model)
    if config.peft_type in known:
        host = known[config.peft_type]
        host.add_adapter(name, config)
        if not config.is_prompt_learning:
            host.base_model.set_requires_grad([name], not config.inference_mode)
    else:
        host = _new_host(model, name, config)
        guide_model(host, activation)
        known[config.peft_type] = host
    host.ours.add(name)
    return host


def _new_host(model: nn.Module, name: str, config: PeftConfig) -> PeftModel:
    kinds = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    if config.is_prompt_learning and config.task_type not in kinds:
        raise UserError(
            f"`{name}` puts virtual tokens before the input, and {type(model).__name__} is no model of transformers "
            "that PEFT knows how to do this with.",
            f"Its config may say what the model is for: task_type={'|'.join(kinds)}.",
        )
    # PEFT would take what is there for its own and join the two.
    of_others = model.__dict__.pop("peft_config", None)
    try:
        return kinds.get(config.task_type, PeftModel)(model, config, adapter_name=name)
    finally:
        if of_others is not None:
            model.peft_config = of_others


def _task(model: nn.Module) -> str | None:
    if not hasattr(model, "config"):
        return None
    return next((task for end, task in _TASKS.items() if type(model).__name__.endswith(end)), None)


def _plain(key: str) -> str:
    """A key in a model where the layer is in no other tuner's layer."""
    return key.replace("base_layer.", "")


def _unwrap(model: nn.Module) -> None:
    """Take out layers of PEFT that have no adapter any more."""
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            while (inner := _inner_of_empty(child)) is not None:
                child = inner
            setattr(parent, child_name, child)


def _inner_of_empty(module: nn.Module) -> nn.Module | None:
    if isinstance(module, BaseTunerLayer) and not module._all_available_adapter_names():
        inner: nn.Module = module.base_layer
        return inner
    if isinstance(module, AuxiliaryTrainingWrapper) and not module._adapters:
        original: nn.Module = module.original_module
        return original
    return None


def _is_difference(config: PeftConfig) -> bool:
    """Whether W_res + s·BA is W + s·BA − s·B₀A₀: not with LoftQ, whose W_res is quantised, nor as DoRA scales it."""
    return config.init_lora_weights != "loftq" and not config.use_dora and config.bias == "none"


class _Originals:
    """Weights that the beginning of PiSSA, OLoRA, LoftQ … replaces, kept for the way back."""

    def __init__(self, model: nn.Module, config: PeftConfig) -> None:
        replaces = isinstance(getattr(config, "init_lora_weights", True), str)
        self._kept = [(one, one.detach().clone()) for one in model.parameters()] if replaces else []

    def changed(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """(parameter, what it was)."""
        return [(now, was) for now, was in self._kept if not torch.equal(now.data, was)]

    def put_back(self) -> None:
        """Have them in the model again."""
        with torch.no_grad():
            for now, was in self.changed():
                now.copy_(was)


def load_config(folder: Path) -> PeftConfig:
    """The options in a PEFT folder."""
    return PeftConfig.from_pretrained(str(folder))


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> Attached:
    if getattr(config, "init_lora_weights", None) == "loftq" and not torch.cuda.is_available():
        raise UserError(
            "LoftQ's first matrices are what PEFT computes on a GPU, and there is none here.",
            "Use `pissa` or `olora`, which also begin from the weights, or a machine with a GPU.",
        )
    return PeftAttached(model, name, config, activation)


def _declared() -> Iterator[Tuner]:
    lora = {"target_modules": "all-linear", "r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
    linear = {"target_modules": "all-linear"}
    rows: list[tuple[str, type, str, dict[str, Any]]] = [
        ("lora", peft.LoraConfig, "LoRA, arXiv:2106.09685", lora),
        ("dora", peft.LoraConfig, "DoRA, arXiv:2402.09353", {**lora, "use_dora": True}),
        ("rslora", peft.LoraConfig, "rsLoRA, arXiv:2312.03732", {**lora, "use_rslora": True}),
        ("pissa", peft.LoraConfig, "PiSSA, arXiv:2404.02948", {**lora, "init_lora_weights": "pissa"}),
        ("olora", peft.LoraConfig, "OLoRA, arXiv:2406.01775", {**lora, "init_lora_weights": "olora"}),
        (
            "loftq",
            peft.LoraConfig,
            "LoftQ, arXiv:2310.08659",
            {**lora, "init_lora_weights": "loftq", "loftq_config": LOFTQ},
        ),
        (
            "adalora",
            peft.AdaLoraConfig,
            "AdaLoRA, arXiv:2303.10512",
            {**linear, "lora_alpha": 32, "total_step": WHEN_TRAINING_BEGINS},
        ),
        ("ia3", peft.IA3Config, "(IA)³, arXiv:2205.05638", {}),
        ("boft", peft.BOFTConfig, "BOFT, arXiv:2311.06243", linear),
        ("vera", peft.VeraConfig, "VeRA, arXiv:2310.11454", linear),
        ("fourierft", peft.FourierFTConfig, "FourierFT, arXiv:2405.03003", linear),
        ("loha", peft.LoHaConfig, "LoHa (FedPara), arXiv:2108.06098", linear),
        ("lokr", peft.LoKrConfig, "LoKr (LyCORIS), arXiv:2309.14859", linear),
        ("prompt", peft.PromptTuningConfig, "Prompt tuning, arXiv:2104.08691", {"num_virtual_tokens": 20}),
        ("prefix", peft.PrefixTuningConfig, "Prefix tuning, arXiv:2101.00190", {"num_virtual_tokens": 20}),
        ("p-tuning", peft.PromptEncoderConfig, "P-tuning, arXiv:2103.10385", {"num_virtual_tokens": 20}),
        ("peft", PeftConfig, "any other config of PEFT, from Python", {}),
    ]
    for name, config, source, defaults in rows:
        yield Tuner(name, config, source, _attach, defaults, first=name == "vera", in_cache=name == "prefix")


TUNERS = list(_declared())
