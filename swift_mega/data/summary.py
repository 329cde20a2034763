"""`data inspect`: what a pair of `.bin/.idx` files holds, in text."""

import numpy as np

from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.data.indexed import Index, bin_path, read_index
from swift_mega.data.manifest import Manifest, read_manifest

BAR_WIDTH = 40
SHOWN_TOKENS = 200


def summarize(prefix: str, tokenizer: str | None = None, document: int = 0, *, trust_remote_code: bool = False) -> None:
    """Print counts, document lengths and the beginning of one document.

    Args:
        tokenizer: folder or id; None takes the one in the manifest, and shows ids where there is none.

    Raises:
        UserError: files missing or damaged, no such document, no such tokenizer.
    """
    prefix = prefix.removesuffix(".bin").removesuffix(".idx")
    index, manifest = read_index(prefix), read_manifest(prefix)
    for line in [*_counts(index, manifest), *histogram(index.lengths)]:
        say(line)
    if index.documents:
        name = tokenizer or (manifest.tokenizer.name if manifest else None)
        say(_beginning(index, document, name, trust_remote_code))


def _counts(index: Index, manifest: Manifest | None) -> list[str]:
    lines = [f"{index.documents:,} documents, {index.tokens:,} tokens of {index.dtype}"]
    if manifest is None:
        return [*lines, "no manifest: built by another tool"]
    lines.append(
        f"tokenizer {manifest.tokenizer.name}: {manifest.tokenizer.vocab_size:,} ids, EOD {manifest.tokenizer.eod}"
    )
    lines += [f"from {source.path} ({source.bytes:,} bytes)" for source in manifest.sources]
    lines += [f"left out: {count:,} rows, {reason}" for reason, count in manifest.bad_rows.items()]
    if manifest.empty_documents:
        lines.append(f"left out: {manifest.empty_documents:,} empty documents")
    return lines


def histogram(lengths: np.ndarray) -> list[str]:
    """Documents by length in powers of two, one line each, with a bar that is longest for the most frequent."""
    if not len(lengths):
        return []
    bins = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
    lines = ["tokens per document:"]
    for power in range(int(np.argmax(bins > 0)), len(bins)):
        bar = "█" * -(-BAR_WIDTH * int(bins[power]) // int(bins.max()))
        lines.append(f"  ≤ {2**power:>11,}  {bins[power]:>11,}  {bar}")
    median, largest = int(np.median(lengths)), int(lengths.max())
    return [*lines, f"  shortest {int(lengths.min()):,}, median {median:,}, longest {largest:,}"]


def _beginning(index: Index, document: int, tokenizer: str | None, trust_remote_code: bool) -> str:
    if not 0 <= document < index.documents:
        raise UserError(f"there is no document {document} among {index.documents:,}.", f"0 to {index.documents - 1}.")
    start = int(index.lengths[:document].sum(dtype=np.int64)) * index.dtype.itemsize
    count = min(int(index.lengths[document]), SHOWN_TOKENS)
    ids = np.fromfile(bin_path(index.prefix), index.dtype, count, offset=start).tolist()
    more = " …" if count < index.lengths[document] else ""
    head = f"document {document} ({int(index.lengths[document]):,} tokens):\n"
    if tokenizer is None:
        return f"{head}{ids}{more}"
    from swift_mega.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    return f"{head}{loaded.decode(ids, clean_up_tokenization_spaces=False)}{more}"
