"""What libraries log about themselves is left out; everything else is not."""

import logging

import pytest

from swift_mega.compat.quiet import hide_when_imported


def test_only_those_messages_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    hide_when_imported()
    hide_when_imported()
    logger = logging.getLogger("torchao")
    logger.warning("Failed to load /somewhere/_C_cutlass_90a.abi3.so: no CUDA")
    logger.warning("another thing")
    logging.getLogger("torch.utils._pytree").warning("<enum 'KernelPreference'> is an Enum subclass")
    logging.getLogger("transformers.training_args").warning("When using FSDP, prefer `activation_checkpointing` in …")
    logging.getLogger("bitsandbytes").warning("MatMul8bitLt: inputs will be cast from float32")
    assert [record.getMessage() for record in caplog.records] == [
        "another thing",
        "MatMul8bitLt: inputs will be cast from float32",  # of another logger than theirs
    ]
