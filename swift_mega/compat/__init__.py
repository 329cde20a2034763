"""All we know about library versions, and about running without CUDA, TransformerEngine or apex.

`install()` comes before the first import of megatron. Nothing outside this package asks which version
of a library is there or whether CUDA is.
"""


def install() -> None:
    """Make megatron-core importable and runnable on this machine. Calling it again does nothing.

    Raises:
        CompatError: megatron was imported before, or a library no longer is as a redirection expects it.
    """
    from swift_mega.compat.installation import install_redirections
    from swift_mega.compat.quiet import hide_inside_megatron

    hide_inside_megatron()
    install_redirections()
