"""``pyds4 logits``: the model's scores at every position, for comparing engines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyds4.cli import options
from pyds4.cli.console import Progress, note, size
from pyds4.cli.failure import CommandError
from pyds4.cli.relay import call

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pyds4.engine import Engine
    from pyds4.session import Session

    Ids = npt.NDArray[np.int64]
    Rows = npt.NDArray[np.float32]

EPILOG = """\
TOKENS.npy holds a one-dimensional array of integers. OUT.npy becomes float32 [tokens, vocabulary]:
row i scores what follows token i. Rows go to disk as they are made, so memory does not grow with
the number of tokens.

example:
  pyds4 logits model.gguf tokens.npy logits.npy --roundings off --chunk 64
"""

_STEP_BYTES = 256 << 20
"""Of logits held at once when no chunk is given."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="a GGUF file")
    parser.add_argument("tokens", metavar="TOKENS.npy", help="token ids")
    parser.add_argument("out", metavar="OUT.npy", help="the file to write")
    parser.add_argument(
        "--chunk",
        type=options.integer(1),
        metavar="N",
        help="feed N tokens at a time; 1 is pure decode (default: as many as fit "
        f"{size(_STEP_BYTES)} of logits)",
    )
    options.add_engine(parser)


def execute(arguments: argparse.Namespace) -> int:
    ids = read_tokens(arguments.tokens)
    out = Path(arguments.out)
    if not out.absolute().parent.is_dir():
        raise CommandError(f"{out}: there is no directory {out.absolute().parent}")
    with options.open_engine(arguments) as engine:
        _check_ids(arguments.tokens, ids, engine)
        vocabulary = engine.config.vocab_size
        chunk = arguments.chunk or max(1, _STEP_BYTES // (4 * vocabulary))
        with engine.session() as session, Progress("logits") as progress:
            rows = _rows(session, ids, chunk)
            _write(out, rows, (ids.size, vocabulary), progress)
    note(f"{out}: float32 [{ids.size}, {vocabulary}], {size(ids.size * vocabulary * 4)}")
    return 0


def read_tokens(path: str) -> Ids:
    """The ids in a .npy file.

    Raises:
        CommandError: not a .npy file of a one-dimensional, non-empty array of integers.
        OSError: it cannot be read.
    """
    import numpy as np

    with Path(path).open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise CommandError(f"{path}: not a .npy file")
    try:
        ids = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python and lets anything out
        raise CommandError(f"{path}: a damaged .npy file: {error}") from None
    if ids.dtype.kind not in "iu":
        raise CommandError(f"{path}: expected an array of integers, found {ids.dtype}")
    if ids.ndim != 1:
        raise CommandError(f"{path}: expected one dimension, found shape {ids.shape}")
    if ids.size == 0:
        raise CommandError(f"{path}: holds no tokens")
    if ids.dtype == np.uint64:
        ids = np.minimum(ids, np.uint64(2**62))
    wide: Ids = ids.astype(np.int64)
    return wide


def _check_ids(path: str, ids: Ids, engine: Engine) -> None:
    """Name a bad id before anything is computed."""
    vocabulary, limit = engine.config.vocab_size, engine.config.context_length
    bad = (ids < 0) | (ids >= vocabulary)
    if bad.any():
        at = int(bad.argmax())
        raise CommandError(
            f"{path}: id {ids[at]} at position {at} is outside the vocabulary of {vocabulary}"
        )
    if ids.size > limit:
        raise CommandError(f"{path}: {ids.size} tokens, the model's context is {limit}")


def _rows(session: Session, ids: Ids, chunk: int) -> Iterator[Rows]:
    """The logits of ``chunk`` tokens at a time, in order."""
    from pyds4.engine import StepItem

    def decode(token: int) -> Rows:
        session.decode(token)
        return session.logits.reshape(1, -1)

    def prefill(part: list[int]) -> Rows:
        (result,) = session.engine.step([StepItem(session, part, all_logits=True)])
        if result.error is not None:
            raise result.error
        assert result.logits is not None
        return result.logits

    for at in range(0, ids.size, chunk):
        part: list[int] = ids[at : at + chunk].tolist()
        if chunk == 1:
            yield call(session, partial(decode, part[0]))
        else:
            yield call(session, partial(prefill, part))


def _write(out: Path, rows: Iterator[Rows], shape: tuple[int, int], progress: Progress) -> None:
    """Write a .npy file row by row; it has its name only once it is complete."""
    from numpy.lib import format as npy

    unfinished = out.with_name(out.name + ".partial")
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": shape}
    done = 0
    try:
        with unfinished.open("wb") as file:
            npy.write_array_header_1_0(file, header)
            for part in rows:
                file.write(part.astype("<f4", copy=False).data)
                done += len(part)
                progress.update(done, shape[0])
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
