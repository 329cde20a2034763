"""Typed dataclasses ⇄ YAML ⇄ dotted overrides on the command line: one way to configure everything.

A configuration is a dataclass of dataclasses. Its sections are the groups of `--help`, the docstring
under a field is the help text, its default is the default. `msgspec` checks types and names the path
of a wrong value; argparse and PyYAML read; what is ours is the seam between them. The two libraries are
imported where they are used: `--help` needs neither.

An option is written `--section.field value`. The section may be left out where the field's name is
unique, and `-` may stand for `_`, so Megatron's own flags (`--tensor-model-parallel-size 2`) work. A mapping is
written `--section.field name=value name=value`, its values as in JSON, YAML's switches (`True`, `no`), or plain text.
"""

import argparse
import ast
import dataclasses
import functools
import itertools
import json
import re
import sys
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from swift_mega.base.errors import UserError, nearest

T = TypeVar("T")


class Leaf(NamedTuple):
    """One option: where it is, what it may be, and what it is for."""

    path: str
    type: Any
    default: Any
    doc: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field of `cls` (its attribute docstring), on one line."""
    module = sys.modules[cls.__module__]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    docs = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Every option of the configuration `cls`, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Leaf(prefix + field.name, hint, default, field_docs(cls).get(field.name, ""))


def build(
    cls: type[T], values: dict[str, Any], origin: str = "configuration", options: dict[str, Any] | None = None
) -> T:
    """`values` (nested, as YAML gives it) as a checked `cls`; a wrong name or type is a UserError.

    Args:
        origin: where the values are from, for messages.
        options: those among the values that are from the command line instead.
    """
    import msgspec

    _check_names(cls, values, "", origin)
    _check_required(cls, values, origin)
    try:
        return msgspec.convert(values, cls, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong_value(cls, values, origin, options or {}, str(error)) from None


def _wrong_value(cls: type, values: dict[str, Any], origin: str, options: dict[str, Any], message: str) -> UserError:
    """What msgspec says, in the words of the one who wrote the value."""
    found = re.search(r"at `\$\.([\w.]+)", message)
    leaf = next((leaf for leaf in leaves(cls) if found and leaf.path == found[1]), None)
    if leaf is None:
        return UserError(f"{origin}: {message}", "`--help` lists every option with its type and default.")
    typed = _value_at(options, leaf.path) is not None
    name = f"`--{leaf.path}`" if typed else f"{origin}: `{leaf.path}`"
    return UserError(f"{name} is {_value_at(values, leaf.path)!r}.", f"{allowed(leaf.type)} (`--help` says more)")


def _value_at(values: dict[str, Any], path: str) -> Any:
    """The value in nested ones, None where there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values


def allowed(hint: Any) -> str:
    """What an option may be, as a sentence."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    kinds = args if origin in (typing.Union, types.UnionType) else (hint,)
    choices = [
        choice for kind in kinds for choice in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal
    ]
    null = ["null"] if type(None) in kinds else []
    switch = ["true", "false"] if bool in kinds else []
    if origin is dict:
        return "It must be `name=value` pairs."
    if choices:
        return f"Possible: {', '.join(map(str, choices + switch + null))}."
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return f"It must be {' or '.join([words.get(kind, 'a list') for kind in kinds if kind is not type(None)] + null)}."


def _check_names(cls: type, values: Any, prefix: str, origin: str) -> None:
    if not isinstance(values, dict):
        raise UserError(
            f"{origin}: `{prefix.rstrip('.') or 'top level'}` must hold `name: value` pairs, got {values!r}.",
            "`--help` lists what goes there.",
        )
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            known = [leaf.path for leaf in leaves(cls, prefix)] if prefix else list(hints)
            raise UserError(f"{origin}: there is no option `{prefix}{name}`.", nearest(f"{prefix}{name}", known))
        if dataclasses.is_dataclass(hints[name]):
            _check_names(typing.cast(type, hints[name]), value, f"{prefix}{name}.", origin)


def _check_required(cls: type, values: dict[str, Any], origin: str) -> None:
    for leaf in leaves(cls):
        *sections, name = leaf.path.split(".")
        section = functools.reduce(lambda level, key: level.get(key) or {}, sections, values)
        if leaf.default is dataclasses.MISSING and name not in section:
            raise UserError(
                f"{origin}: `{leaf.path}` is missing. {leaf.doc}",
                f"Write it in the YAML file, or give `--{leaf.path}` on the command line.",
            )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.load(text, _yaml_loader()) or {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.", "Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {error}.", "Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} is not valid YAML: {error}", "Correct it there; a string with a special sign needs quotes."
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path} holds {type(values).__name__}, not `name: value` pairs.", "For example `train: {steps: 100}`."
        )
    return values


@functools.cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader, which alone would take the last of two equal names and forget the first."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            for number, (key, _) in enumerate(node.value):
                if key.value in names[:number]:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"`{key.value}` is there a second time", key.start_mark
                    )
            return super().construct_mapping(node, deep)

    return Loader


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain values, every default written out."""
    import msgspec

    return typing.cast(dict[str, Any], msgspec.to_builtins(dataclasses.asdict(config)))


def dump(config: Any) -> str:
    """The resolved configuration as YAML; `build(type(config), yaml)` gives an equal one back."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """One `--section.field` for every leaf of `cls`, grouped by section, with its short spellings."""
    options = list(leaves(cls))
    unique = {name for name, count in Counter(leaf.name for leaf in options).items() if count == 1}
    sections = typing.get_type_hints(cls)
    groups: dict[str, Any] = {}
    for leaf in options:
        section = leaf.path.partition(".")[0] if "." in leaf.path else ""
        if section not in groups:
            purpose = sections[section].__doc__ if section else cls.__doc__
            groups[section] = parser.add_argument_group(section or "the run", purpose)
        spellings = [leaf.path] + ([leaf.name] if leaf.name in unique else [])
        flags = dict.fromkeys(f"--{form}" for word in spellings for form in (word, word.replace("_", "-")))
        groups[section].add_argument(
            *flags,
            dest=leaf.path,
            default=argparse.SUPPRESS,
            metavar=_type_name(leaf.type),
            help=f"{leaf.doc} {_default_text(leaf.default)}".strip().replace("%", "%%"),
            **_arity(leaf.type),
        )


def overrides(namespace: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The options given on the command line, nested as in YAML."""
    nested: dict[str, Any] = {}
    for leaf in leaves(cls):
        if hasattr(namespace, leaf.path):
            value = getattr(namespace, leaf.path)
            *sections, name = leaf.path.split(".")
            inner = functools.reduce(lambda level, section: level.setdefault(section, {}), sections, nested)
            inner[name] = _pairs(leaf.path, value) if _is_mapping(leaf.type) else _given(value)
    return nested


def named(cls: type[T], **options: Any) -> T:
    """`cls` from options by their names, as on the command line: those of sections without the section's name."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        found = [leaf.path for leaf in leaves(cls) if leaf.name == name]
        path = found[0] if len(found) == 1 else name
        *sections, last = path.split(".")
        functools.reduce(lambda level, section: level.setdefault(section, {}), sections, values)[last] = value
    return build(cls, values, "options")


def _given(value: Any) -> Any:
    return None if value in ("null", "none") else value


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def _pairs(path: str, words: list[str]) -> dict[str, Any]:
    """`name=value` each, as a mapping."""
    from yaml import SafeLoader

    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise UserError(f"`--{path}` was given `{word}`.", "Write `name=value`, without blanks around `=`.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = SafeLoader.bool_values.get(value.lower(), _given(value))
    return found


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, section by section; neither is changed."""
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _arity(hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) in (list, dict):
        return {"nargs": "+"}
    return {"nargs": "?", "const": "true"} if hint is bool else {}


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin is list:
        return _type_name(args[0])
    if origin is dict:
        return "NAME=VALUE"
    if origin in (typing.Union, types.UnionType):
        return "|".join("null" if arg is type(None) else _type_name(arg) for arg in args)
    return getattr(hint, "__name__", str(hint)).upper()


def _default_text(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "(required)"
    # What null and an empty list stand for is said in the text of the option.
    return (
        ""
        if default is None or default in ([], {})
        else f"(default: {str(default).lower() if default in (True, False) else default})"
    )
