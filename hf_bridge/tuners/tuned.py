"""Tuners on a model: put on, chosen, moved away, saved, taken off. The model may come from anywhere.

tuned = prepare_model(model, {"lora": LoraConfig(r=8), "llamapro": LLaMAProConfig(num_new_blocks=4)})
with tuned.using("lora"):
    tuned(**inputs)
tuned.save_pretrained("tuned")
tuned = from_pretrained(model, "tuned")
"""

import json
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hf_bridge.tuners import folder as own_folder
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beginnings import START
from hf_bridge.tuners.merging import Merged, merged
from hf_bridge.tuners.offload import Offloaded
from hf_bridge.tuners.peft_tuners import adapters_on
from hf_bridge.tuners.registry import tuner_of
from hf_bridge.tuners.targets import check_targets
from hf_bridge.tuners.tuner import Attached
from swift_mega.base.errors import UserError, nearest

INDEX = "tuners.json"
"""Which tuners a folder has, and where in it."""
PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Trainable:
    """How much is trained."""

    count: int
    """Numbers in parameters that are trained."""
    share: float
    """Of all the model has, those included."""


class TunedModel:
    """A model with its tuners; called, it is the model.

    Attributes:
        base: the model. What tuners put into it comes and goes with them.
        attached: its tuners by name, in the order in which they were attached.
        activation: which of them are at work.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.attached: dict[str, Attached] = {}
        self.activation = Activation()
        self._offloaded: dict[str, Offloaded] = {}
        self._moving = threading.Lock()
        self._used_here: Counter[str] = Counter()
        self._trained_before = [(parameter, parameter.requires_grad) for parameter in base.parameters()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._at_work()(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' models do it."""
        return self._at_work().generate(*args, **kwargs)

    @property
    def model(self) -> nn.Module:
        """What a Trainer takes: a PeftModel where a tuner is PEFT's, which TRL's trainers know, else the model."""
        named = sorted(self.attached.values(), key=lambda one: one.name != "default")
        found: list[nn.Module] = [one.host for one in named if hasattr(one, "host")]
        return ([host for host in found if host._is_prompt_learning] or found or [self.base])[0]

    def _at_work(self) -> Any:
        """The PeftModel of those at work, which adds virtual tokens or a term of the loss; else the model."""
        found = [one.host for name, one in self.attached.items() if name in self.activation and hasattr(one, "host")]
        return ([host for host in found if host._is_prompt_learning] or found or [self.base])[0]

    # Coming and going

    def attach(self, name: str, config: Any, *, active: bool = True) -> Attached:
        """Put a tuner on the model.

        Args:
            name: by which it is chosen.
            config: of PEFT or of `hf_bridge.tuners`; its class says which kind of tuner.
            active: it is at work from then on, beside those that are.

        Raises:
            UserError: the name is taken or unusable, the config is no tuner's, or the model has no such modules.
        """
        self._check_name(name)
        kind = tuner_of(config)
        check_targets(self.base, config)
        trained = {id(one) for one in (*self.base.parameters(), *self._parameters()) if one.requires_grad}
        with ExitStack() as undo:
            undo.callback(self._train, trained)
            one = kind.attach(self.base, name, config, self.activation)
            undo.pop_all()
        own = {id(parameter) for parameter in one.parameters().values() if parameter.requires_grad}
        of_others = {id(parameter) for parameter in self._parameters()}
        self.attached[name] = one
        self._train(own | (trained & of_others))
        self.model.train(self.base.training)  # new modules have dropout on, whatever the model is doing
        if active:
            with ExitStack() as undo:
                undo.callback(self.detach, name)
                self.activation.everywhere = self._choice((name, *self.activation.everywhere))
                undo.pop_all()
        return one

    def _train(self, wanted: set[int]) -> None:
        """Of all parameters, those with these ids are trained."""
        for parameter in (*self.base.parameters(), *self._parameters()):
            parameter.requires_grad_(id(parameter) in wanted)

    def detach(self, *names: str) -> nn.Module:
        """Take tuners off, all if none is named, and return the model; without any it is as it was before."""
        for name in reversed(self._known(names or tuple(self.attached))):
            self.onload(name)
            self.attached.pop(name).detach()
            self.activation.everywhere -= {name}
        if not self.attached:
            for parameter, trained in self._trained_before:
                parameter.requires_grad_(trained)
        return self.base

    def _check_name(self, name: str) -> None:
        if name in self.attached:
            raise UserError(f"The model has a tuner `{name}` already.", "Choose another name.")
        if name in adapters_on(self.base):
            raise UserError(
                f"The model already has a tuner `{name}`, which another TunedModel, or PEFT, has put on it.",
                "Take that off first with its detach(), attach to that TunedModel, or choose another name.",
            )
        parts = {part for module_name, _ in self.base.named_modules() for part in module_name.split(".")}
        if not name or "." in name or "/" in name or name.endswith(START) or name in parts:
            raise UserError(
                f"`{name}` cannot be a tuner's name: it stands in the names of parameters and folders.",
                f"Choose one without dots and slashes that is no part of a module's name and does not end in {START}.",
            )

    def _known(self, names: tuple[str, ...]) -> list[str]:
        for name in names:
            if name not in self.attached:
                raise UserError(f"The model has no tuner `{name}`.", nearest(name, self.attached))
        return [name for name in self.attached if name in names]

    # Choosing

    @property
    def active(self) -> list[str]:
        """The tuners at work for this thread."""
        return [name for name in self.attached if name in self.activation]

    def activate(self, *names: str) -> None:
        """From now on these are at work and no others; `using` goes before it where it was used.

        Raises:
            UserError: unknown, or together impossible.
        """
        self.activation.everywhere = self._choice(names)

    def deactivate(self, *names: str) -> None:
        """From now on these are not at work, none if none is named."""
        out = self._known(names or tuple(self.attached))
        self.activate(*(name for name in self.attached if name in self.activation.everywhere and name not in out))

    @contextmanager
    def using(self, *names: str) -> Iterator["TunedModel"]:
        """Inside, and in this thread alone, these are at work and no others: for inference."""
        chosen = self._choice(names)
        with self._moving:
            self._used_here.update(chosen)
        try:
            with self.activation.only(chosen):
                yield self
        finally:
            with self._moving:
                self._used_here.subtract(chosen)

    def _choice(self, names: tuple[str, ...]) -> frozenset[str]:
        chosen = self._known(names)
        if always := [name for name, one in self.attached.items() if not one.switchable and name not in chosen]:
            raise UserError(
                f"`{always[0]}` has changed the model's own weights, so the model without it is not here.",
                f"Name it, too: {', '.join(f'`{name}`' for name in (*always, *chosen))}; or take it off.",
            )
        for one, other in permutations(chosen, 2):
            if why := self.attached[one].conflict(self.attached[other]):
                raise UserError(
                    f"`{one}` and `{other}` cannot be at work together: {why}.",
                    f"Choose one of them, as with `tuned.using({one!r})`.",
                )
        for name in chosen:
            self.onload(name)
        return frozenset(chosen)

    # Moving

    def offload(self, name: str, to: Literal["cpu", "meta"] = "cpu") -> None:
        """Take what a tuner that is not at work has from its device; it comes back when it is chosen.

        Args:
            name: of the tuner.
            to: `cpu`, or `meta`: then it lies in a temporary file.

        Raises:
            UserError: unknown, at work, or the model's own weights.
        """
        (name,) = self._known((name,))
        if not self.attached[name].switchable:
            raise UserError(f"`{name}` is the model's own weights.", "Move the model.")
        with self._moving:
            if name in self.activation.everywhere or self._used_here[name]:
                raise UserError(
                    f"`{name}` is at work.", f"Deactivate it first, tuned.deactivate({name!r}), or leave its `using`."
                )
            if name not in self._offloaded:
                self._offloaded[name] = Offloaded(self.attached[name].parameters(), to)

    def onload(self, name: str) -> None:
        """Bring a tuner back to its device; nothing happens where it is there."""
        with self._moving:
            if (away := self._offloaded.pop(name, None)) is not None:
                away.back()

    # Training

    @property
    def trainable(self) -> Trainable:
        """How much is trained."""
        trained = {id(one): _size(one) for one in self._parameters() if one.requires_grad}
        everything = {id(one): _size(one) for one in (*self.base.parameters(), *self._parameters())}
        return Trainable(sum(trained.values()), sum(trained.values()) / max(1, sum(everything.values())))

    def _parameters(self) -> Iterator[nn.Parameter]:
        for one in self.attached.values():
            yield from one.parameters().values()

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """What is trained, as torch's optimizers take it; no decay on biases and norms, as transformers has it."""
        from transformers import Trainer

        decayed = set(Trainer.get_decay_parameter_names(None, self.model))
        decayed_ids = {id(parameter) for name, parameter in self.model.named_parameters() if name in decayed}
        groups: list[dict[str, Any]] = []
        alike: dict[float, dict[int, nn.Parameter]] = {weight_decay: {}, 0.0: {}}
        for one in self.attached.values():
            own = one.parameter_groups(lr, weight_decay)
            groups += own or []
            for parameter in one.parameters().values() if own is None else ():
                if parameter.requires_grad:
                    decay = weight_decay if id(parameter) in decayed_ids else 0.0
                    alike[decay][id(parameter)] = parameter
        for decay, parameters in alike.items():
            if parameters:
                groups.append({"params": list(parameters.values()), "lr": lr, "weight_decay": decay})
        return groups

    def optimizer(self, groups: list[dict[str, Any]], arguments: Any) -> torch.optim.Optimizer | None:
        """The one that a tuner brings; None: whichever the run has.

        Args:
            groups: see `parameter_groups`.
            arguments: transformers' TrainingArguments.

        Raises:
            UserError: two tuners bring one each.
        """
        found = {name: one.optimizer(groups, arguments) for name, one in self.attached.items()}
        brought = {name: optimizer for name, optimizer in found.items() if optimizer is not None}
        if len(brought) > 1:
            raise UserError(
                f"{' and '.join(f'`{name}`' for name in brought)} each bring an optimizer of their own.",
                "Train with one of them.",
            )
        return next(iter(brought.values()), None)

    def callbacks(self) -> list[Any]:
        """transformers' TrainerCallbacks of all tuners."""
        return [callback for one in self.attached.values() for callback in one.callbacks()]

    # Keeping

    def merged(self, *names: str) -> Merged:
        """A model without tuners in whose weights these are, those at work if none is named; this one stays as it is.

        Raises:
            UserError: one of them is no change of weights, or these are quantised or tied.
        """
        chosen = self._choice(names or tuple(self.active))
        return merged(self.base, self.attached.values(), set(chosen))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write every tuner, each as its library does: PEFT's as a PEFT folder.

        One alone, and one named `default`, lies in the folder itself, the others in folders of their names.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        alone = len(self.attached) == 1
        places = {name: "." if alone or name == "default" else name for name in self.attached}
        for name, one in self.attached.items():
            self.onload(name)
            one.save(folder / places[name])
        content = {"tuners": places, "active": sorted(self.activation.everywhere)}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n")

    def load(self, folder: str | Path) -> None:
        """Put what `save_pretrained` wrote into the tuners that are attached, as to go on training.

        Raises:
            UserError: other tuners, or of another model.
        """
        places = _places(Path(folder))
        if places.keys() != self.attached.keys():
            raise UserError(f"{folder} has {', '.join(places)}, the model has {', '.join(self.attached)}.")
        for name, one in self.attached.items():
            one.load(places[name])


def _size(parameter: nn.Parameter) -> int:
    """Numbers in it; of one that ZeRO-3 has cut in pieces, in the whole."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def prepare_model(
    model: nn.Module | TunedModel, tuners: Mapping[str, Any], *, active: Collection[str] | None = None
) -> TunedModel:
    """Put tuners on a model.

    Args:
        model: any, not only of transformers; or one that has tuners already.
        tuners: name → config, of PEFT or of `hf_bridge.tuners`.
        active: those that are at work at first. None: all.

    Raises:
        UserError: as `TunedModel.attach`; the model is then as it was.
    """
    tuned = model if isinstance(model, TunedModel) else TunedModel(model)
    with ExitStack() as undo:
        # `default` comes last: TRL's trainers add a copy of it, which PEFT puts into the outermost layers.
        for name in sorted(tuners, key=lambda name: (not tuner_of(tuners[name]).first, name == "default")):
            tuned.attach(name, tuners[name], active=active is None or name in active)
            undo.callback(tuned.detach, name)
        undo.pop_all()
    return tuned


def from_pretrained(
    model: nn.Module | TunedModel,
    folder: str | Path,
    *,
    trainable: bool = False,
    active: Collection[str] | None = None,
) -> TunedModel:
    """Put the tuners of a folder on a model.

    Args:
        model: the one that they were made for.
        folder: of `save_pretrained`, of PEFT, or a folder of such folders.
        trainable: whether they can be trained on.
        active: those that are at work at first. None: those that were when it was saved.

    Raises:
        UserError: no such folder, or of another model.
    """
    tuned = model if isinstance(model, TunedModel) else TunedModel(model)
    places = _places(Path(folder))
    configs = {name: _read_config(place, tuned.base, trainable) for name, place in places.items()}
    index = Path(folder) / INDEX
    if active is None and index.is_file():
        active = json.loads(index.read_text())["active"]
    with ExitStack() as undo:
        prepare_model(tuned, configs, active=active)
        undo.callback(tuned.detach, *configs)
        for name, place in places.items():
            tuned.attached[name].load(place)
        undo.pop_all()
    for parameter in () if trainable else tuned._parameters():
        parameter.requires_grad_(False)
    return tuned


def _places(folder: Path) -> dict[str, Path]:
    """The folder of each tuner."""
    if (folder / INDEX).is_file():
        return {name: folder / place for name, place in json.loads((folder / INDEX).read_text())["tuners"].items()}
    found = {"default": folder} | {one.name: one for one in sorted(folder.glob("*/"))}
    places = {
        name: one for name, one in found.items() if (one / PEFT_CONFIG).is_file() or (one / own_folder.CONFIG).is_file()
    }
    if not places:
        raise UserError(
            f"{folder} has no tuner: neither {INDEX}, {PEFT_CONFIG} nor {own_folder.CONFIG} is there.",
            "Give a folder that `save_pretrained` or PEFT has written.",
        )
    return places


def _read_config(folder: Path, model: nn.Module, trainable: bool) -> Any:
    if (folder / PEFT_CONFIG).is_file():
        from hf_bridge.tuners.peft_tuners import load_config

        config = load_config(folder)
        config.inference_mode = not trainable
        made_for, this = config.base_model_name_or_path, getattr(model, "name_or_path", "")
        if made_for and this and made_for != this:
            warnings.warn(f"{folder} was made for {made_for}, this model is {this}.", stacklevel=3)
        return config
    content = json.loads((folder / own_folder.CONFIG).read_text())
    module, _, name = content["config_class"].partition(":")
    if not module.startswith(f"{__package__}."):
        raise UserError(f"{folder / own_folder.CONFIG} is of {module}, which is none of our tuners.")
    kind = getattr(import_module(module), name)
    known = {field.name for field in fields(kind)}
    if unknown := sorted(content["config"].keys() - known):
        raise UserError(f"{folder / own_folder.CONFIG}: {name} has no `{unknown[0]}`.", nearest(unknown[0], known))
    return kind(**content["config"])
