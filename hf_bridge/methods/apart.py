"""Whether a model keeps the rows of a packed sequence apart. Not every one does: a recurrent state goes on from row to
row, and code that comes with a model may know nothing of positions that start again."""

from typing import Any

import torch

from swift_mega.base.errors import UserError

ROW = 8
"""Tokens of each of two rows."""


def check_packing(model: Any, inputs: list[str]) -> None:
    """Compute a row behind one row and behind another: it must not notice.

    Args:
        inputs: of a batch, those that the model takes.

    Raises:
        UserError: it does.
    """
    name, fix = type(model).__name__, "Leave out `--packing`, and choose a larger `per_device_train_batch_size`."
    if "position_ids" not in inputs:
        raise UserError(f"{name} takes no positions, by which packed rows are kept apart.", fix)
    device = model.get_input_embeddings().weight.device
    tokens = torch.arange(2, 2 + 2 * ROW, device=device).repeat(2, 1) % model.config.get_text_config().vocab_size
    tokens[1, :ROW] = tokens[1, :ROW].flip(0)
    positions = torch.arange(ROW, device=device).repeat(2, 2)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits[:, ROW:].float()
    model.train(was_training)
    seen = float((logits[0] - logits[1]).abs().max() / logits.abs().max())
    if seen > (1e-5 if logits.device.type == "cpu" else 1e-2):
        raise UserError(f"{name} lets the rows of a packed sequence see each other (logits differ by {seen:.1%}).", fix)
