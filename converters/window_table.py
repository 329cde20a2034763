"""Rows about sliding windows: which layers see how many tokens."""

from dataclasses import dataclass
from typing import Any

from converters.config_table import Config, MegatronArguments
from swift_mega.base.errors import UserError

FULL, WINDOWED = "full_attention", "sliding_attention"
"""transformers' names of the two kinds of layers."""

NO_WINDOW: dict[str, Any] = {"window_size": None, "window_attn_skip_freq": None}


@dataclass(frozen=True)
class Window:
    """One sliding window for every layer: `sliding_window` W sees W tokens, itself among them."""

    default: int | None
    fields: tuple[str, ...] = ("sliding_window",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        window = config.get("sliding_window", self.default)
        return NO_WINDOW if window is None else {**NO_WINDOW, "window_size": (window - 1, 0)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if arguments.window_attn_skip_freq is not None:
            raise UserError(
                f"window_attn_skip_freq={arguments.window_attn_skip_freq} cannot be written as this architecture.",
                "It has one window for all layers.",
            )
        return {"sliding_window": arguments.window_size and arguments.window_size[0] + 1}


@dataclass(frozen=True)
class WindowByLayer:
    """A sliding window for some layers: `layer_types`, or all from `max_window_layers` on."""

    default: int = 4096
    default_first: int = 28
    fields: tuple[str, ...] = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        window = config.get("sliding_window", self.default) if config.get("use_sliding_window") else None
        first = config.get("max_window_layers", self.default_first)
        return _windows(config, window, [layer >= first for layer in range(config["num_hidden_layers"])])

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if arguments.window_size is None:
            return {"use_sliding_window": False, "sliding_window": None}
        windowed = arguments.window_attn_skip_freq or [1] * arguments.num_layers
        return {
            "use_sliding_window": True,
            **_layer_types(arguments),
            "max_window_layers": next(layer for layer, on in enumerate(windowed) if on),
        }


@dataclass(frozen=True)
class WindowPattern:
    """A sliding window for all layers but every `period`-th: `layer_types`, or that pattern where it is absent."""

    default: int | None = 4096
    period: int = 0
    """0: every layer has the window."""
    pattern: str = "sliding_window_pattern"
    """Field for another period."""
    rope_in_window_only: bool = False
    """Layers without the window have no rotary embedding, unless no layer has a window."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("sliding_window", "layer_types", self.pattern)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        window = config.get("sliding_window", self.default)
        period = config.get(self.pattern) or self.period
        if isinstance(period, str):  # "LLLG": as a word for each layer of a period
            period = len(period)
        layers = range(1, config["num_hidden_layers"] + 1)
        found = _windows(config, window, [not period or layer % period != 0 for layer in layers])
        if self.rope_in_window_only:
            windowed = found["window_attn_skip_freq"]
            if windowed is None and window is not None and found["window_size"] is None:
                windowed = [0] * len(layers)
            found["no_rope_freq"] = windowed and [1 - on for on in windowed]
        return found

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if arguments.window_size is not None:
            return _layer_types(arguments)
        # transformers makes a mask for the window even where no layer has it.
        window = None if self.rope_in_window_only else self.default
        return {"sliding_window": window, "layer_types": [FULL] * arguments.num_layers}


def _windows(config: Config, window: int | None, pattern: list[bool]) -> dict[str, Any]:
    """Megatron's window for `layer_types`, or for `pattern` where that is absent."""
    kinds = config.get("layer_types") or [WINDOWED if on and window is not None else FULL for on in pattern]
    wrong = set(kinds) - {FULL, WINDOWED}
    if wrong or len(kinds) != len(pattern):
        raise UserError(
            f"config.json: `layer_types` has {len(kinds)} entries for {len(pattern)} layers"
            + (f", among them {', '.join(sorted(wrong))}." if wrong else "."),
            f"Possible: one of {FULL} and {WINDOWED} for each layer.",
        )
    windowed = [int(kind == WINDOWED) for kind in kinds]
    if not any(windowed):
        return dict(NO_WINDOW)
    if window is None:
        raise UserError(
            f"config.json: `layer_types` has {WINDOWED}, but use_sliding_window or sliding_window is off.",
            f"Set both, or make every layer {FULL}.",
        )
    return {"window_size": (window - 1, 0), "window_attn_skip_freq": None if all(windowed) else windowed}


def _layer_types(arguments: MegatronArguments) -> Config:
    """The way back, where there is a window: its size and what kind each layer is."""
    assert arguments.window_size is not None
    windowed = arguments.window_attn_skip_freq or [1] * arguments.num_layers
    return {
        "sliding_window": arguments.window_size[0] + 1,
        "layer_types": [WINDOWED if on else FULL for on in windowed],
    }
