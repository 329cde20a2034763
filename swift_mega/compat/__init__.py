"""All we know about library versions, and about running without CUDA, TransformerEngine or apex.

`install()` comes before the first import of megatron. Nothing outside this package asks which version
of a library is there or whether CUDA is.
"""

import os


def install() -> None:
    """Make megatron-core importable and runnable on this machine. Calling it again does nothing.

    Raises:
        CompatError: megatron was imported before, or a library no longer is as a redirection expects it.
    """
    from swift_mega.compat.installation import install_redirections
    from swift_mega.compat.quiet import hide_inside_megatron, hide_when_imported

    # Megatron orders its communication by the order of launches, which takes a single hardware queue.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    hide_inside_megatron()
    hide_when_imported()
    install_redirections()
