"""Agent formats by name."""

from hf_bridge.templates.agents import native, react, xml
from hf_bridge.templates.agents.format import AgentFormat
from swift_mega.base.errors import UserError, nearest

FORMATS = {
    found.name: found
    for module in (react, xml, native)
    for found in vars(module).values()
    if isinstance(found, AgentFormat)
}


def agent_format(name: str) -> AgentFormat:
    """The format called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"there is no agent format `{name}`.", nearest(name, FORMATS))
    return FORMATS[name]
