"""Rewards by what users write: `accuracy`, `length:limit=512,cache=128`, `my.py:function`. Torch-free."""

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hf_bridge.data.row import Row
from hf_bridge.methods.rewards import accuracy, code, form, tools
from hf_bridge.methods.rewards.reward import OfOne, Reward
from swift_mega.base.errors import UserError, nearest

REWARDS: dict[str, Callable[..., OfOne]] = {
    "accuracy": accuracy.accuracy,
    "format": form.format_,
    "length": form.length,
    "cosine": form.cosine,
    "repetition": form.repetition,
    "tools": tools.tools,
    "code": code.code,
}
"""Name → what makes the reward of its options, which are its keywords."""

COLUMNS: dict[str, tuple[str, ...]] = {"accuracy": accuracy.COLUMNS, "cosine": accuracy.COLUMNS, "code": ("tests",)}
"""Name → columns of a row of which the reward reads the first that is there."""


def reward(written: str) -> Reward:
    """The reward that `written` asks for.

    Raises:
        UserError: no such reward, option or file, or a value of another type.
    """
    name, _, rest = written.partition(":")
    if name.endswith(".py"):
        return Reward.of_one(written, _own(Path(name), rest))
    if name not in REWARDS:
        raise UserError(f"there is no reward `{name}`.", f"{nearest(name, REWARDS)}; your own: `my.py:function`")
    return Reward.of_one(name, REWARDS[name](**_options(name, rest)))


def check(written: str, rows: Iterable[Row]) -> None:
    """Refuse a reward that could say nothing of any row, before anything is loaded for it.

    Raises:
        UserError: as `reward`, or no row has what the reward compares with.
    """
    name, _, rest = written.partition(":")
    if name not in REWARDS:
        reward(written)
        return
    column = _options(name, rest).get("column")
    columns = (column,) if column else COLUMNS.get(name, ())
    if columns and not any(row.extra.get(one) is not None for row in rows for one in columns):
        raise UserError(
            f"reward `{name}` compares with a row's {' or '.join(f'`{one}`' for one in columns)}, and no row has it.",
            f"Keep that column of the data: `--keep-columns {columns[0]}`; if it is called otherwise, "
            f"`--keep-columns NAME` and `{name}:column=NAME`.",
        )


def _options(name: str, text: str) -> dict[str, Any]:
    """`a=1,b=two` as keywords of the reward `name`, of the types that it wants."""
    wanted = inspect.signature(REWARDS[name]).parameters
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        option, sign, value = part.partition("=")
        if option not in wanted or not sign:
            raise UserError(f"reward `{name}` has no option `{part}`.", nearest(option, wanted))
        given[option] = _value(f"{name}:{option}", value, wanted[option].annotation)
    missing = [option for option, kind in wanted.items() if kind.default is kind.empty and option not in given]
    if missing:
        example = ",".join(f"{option}=…" for option in missing)
        raise UserError(f"reward `{name}` needs {' and '.join(missing)}.", f"Write `{name}:{example}`.")
    return given


def _value(where: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise UserError(f"`{where}` is `{text}`.", f"It must be of type {kind.__name__}.")


def _own(file: Path, name: str) -> OfOne:
    """The function `name` of a user's file."""
    if not file.is_file():
        raise UserError(f"there is no file {file}.", "Give `folder/my.py:function`.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader, file
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code, which may raise anything
        raise UserError(f"{file} cannot be imported: {_what(error, file)}.", "Mend the file.") from error
    functions = {key for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    if name not in functions:
        raise UserError(f"{file} has no function `{name}`.", nearest(name, functions) if functions else "It has none.")
    found: OfOne = getattr(module, name)
    return found


def _what(error: Exception, file: Path) -> str:
    """The kind of error, its message, and the last line of `file` that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file.absolute()]
    if isinstance(error, SyntaxError):  # says the line where it is, by a file that need not be this one
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or file).name}:{error.lineno})"
    return f"{type(error).__name__}: {error} ({file.name}:{lines[-1] if lines else '?'})"
