"""List the kinds of models that are registered: type, template, ids.

  swift-mega bridge models                all types
  swift-mega bridge models qwen3          the ids of one
  swift-mega bridge models models/mine    what a folder, or an id that nobody registered, is taken for

Any other model that transformers has code for loads as well, with its own chat template or one given by `--template`.
"""

# Read by --help, so without transformers until it runs.

import argparse
from pathlib import Path

from swift_mega.base.console import counted, say
from swift_mega.base.errors import UserError, nearest
from swift_mega.base.hub import MODELSCOPE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("what", nargs="?", metavar="TYPE", help="type, id or folder (default: list all types)")


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from hf_bridge.models.registry import MODEL_TYPES, of_id

    if args.what is None:
        _list()
        return 0
    found = MODEL_TYPES.get(args.what) or of_id(args.what)  # a folder of that name is written `./name`
    if found is not None:
        _show(found.name)
        return 0
    if "/" not in args.what and not Path(args.what).is_dir():
        raise UserError(f"there is no model type `{args.what}`.", nearest(args.what, MODEL_TYPES))
    _recognise(args.what)
    return 0


def _list() -> None:
    from hf_bridge.models.registry import MODEL_TYPES

    for found in MODEL_TYPES.values():
        more = f" and {len(found.ids) - 1} more" if len(found.ids) > 1 else ""
        code = ", with code of its own" if found.own_code else ""
        say(f"{found.name:18} {found.template or 'its own template':18} {found.ids[0]}{more}{code}")
    say()
    say(f"{counted(len(MODEL_TYPES), 'type')}; `swift-mega bridge models TYPE` lists the ids of one.")


def _show(name: str) -> None:
    from hf_bridge.models.registry import MODEL_TYPES
    from hf_bridge.templates.registry import TEMPLATES

    found = MODEL_TYPES[name]
    template = TEMPLATES[found.template] if found.template else None
    say(f"type        {found.name}")
    say(f"model_type  {found.model_type}, as in config.json")
    say(
        f"template    {found.template or 'its own chat template'}{', thinks' if template and template.thinking else ''}"
    )
    say(f"code        {'its own: needs trust_remote_code' if found.own_code else 'of transformers'}")
    for one in (*found.ids, *(MODELSCOPE + one for one in found.modelscope)):
        say(f"            {one}")


def _recognise(name: str) -> None:
    from hf_bridge.models.load import read_raw_config
    from hf_bridge.models.recognise import recognise
    from swift_mega.base.hub import resolve_model
    from swift_mega.data.tokenizer import load_tokenizer

    folder = resolve_model(name, weights=False)
    config = read_raw_config(folder)
    found = recognise(name, config, load_tokenizer(str(folder)))
    names = " or ".join(one.name for one in found.candidates) or "none that is registered"
    own = "its own chat template" if found.own else "no chat template"
    say(f"type        {names}")
    say(f"model_type  {config['model_type']}, as in config.json")
    say(f"template    {own}; declared ones: {', '.join(found.templates) or 'none'}")
