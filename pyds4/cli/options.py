"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pyds4.cli.failure import UsageError

if TYPE_CHECKING:
    from pyds4.chat.template import Profile
    from pyds4.engine import Engine
    from pyds4.sampling import Sampling


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of ``least`` or more, with ``_`` between digits if liked."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
        if value < least or (most is not None and value > most):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"expected {wanted}, found {value}")
        return value

    return parse


def integers(least: int) -> Callable[[str], list[int]]:
    """An argparse type: whole numbers with commas between them; ``8k`` is 8192."""
    one = integer(least)

    def parse(text: str) -> list[int]:
        values = []
        for part in text.split(","):
            part = part.strip().lower()
            scale = {"k": 1024, "m": 1024 * 1024}.get(part[-1:], 1)
            values.append(one(part if scale == 1 else part[:-1]) * scale)
        return values

    return parse


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``, for commands that have a default."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="FILE",
        help="a GGUF file, or the first part of a split one (default: PYDS4_MODEL, else the demo)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How the model is run."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--backend",
        choices=("auto", "cpu", "metal", "cuda"),
        default="auto",
        help="where to compute (default: the best there is)",
    )
    group.add_argument(
        "-t",
        "--threads",
        type=integer(1, 1024),
        metavar="N",
        help="threads of the CPU backend (default: one a processor)",
    )
    group.add_argument(
        "--roundings",
        choices=("on", "off"),
        default="on",
        help="the model's own activation roundings; off: float32, to compare with others",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=1.0, metavar="T",
        help="0 takes the likeliest token (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P",
        help="keep the likeliest tokens that together reach P (default: 1, all)",
    )  # fmt: skip
    group.add_argument(
        "--top-k", type=int, default=0, metavar="K",
        help="keep the K likeliest tokens (default: 0, all)",
    )  # fmt: skip
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="P",
        help="drop tokens less likely than P times the likeliest (default: 0)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")


def add_answering(parser: argparse.ArgumentParser) -> None:
    """What `chat` and `run` say about an answer."""
    group = parser.add_argument_group("answer")
    group.add_argument("--system", metavar="TEXT", help="system message")
    group.add_argument(
        "--think", action="store_true", help="let the model reason before it answers"
    )
    group.add_argument(
        "--effort",
        choices=("low", "high", "max"),
        help="how hard to think; implies --think (which efforts exist depends on --profile)",
    )
    group.add_argument(
        "--profile",
        choices=("preview", "0731"),
        help="the checkpoint's prompt format (default: its manifest's, else preview)",
    )
    group.add_argument(
        "-n", "--max-tokens", type=integer(1), metavar="N",
        help="end an answer after N tokens (default: when the context is full)",
    )  # fmt: skip
    group.add_argument(
        "-c", "--context", type=integer(1), metavar="N",
        help="tokens that prompt and answers may take (default: the model's limit)",
    )  # fmt: skip


def open_engine(arguments: argparse.Namespace) -> Engine:
    """The engine that ``add_model`` and ``add_engine`` describe."""
    from pyds4.default_model import find_model
    from pyds4.engine import Engine

    return Engine(
        find_model(arguments.model),
        backend=arguments.backend,
        roundings=arguments.roundings == "on",
        threads=arguments.threads,
        context=getattr(arguments, "context", None),
    )


def profile(arguments: argparse.Namespace) -> Profile:
    """The prompt format that ``--profile`` and the model's manifest agree on.

    Raises:
        UsageError: they do not agree: answers would be silently worse.
    """
    from pyds4.chat import EFFORTS
    from pyds4.default_model import find_model
    from pyds4.files.manifest import manifest_path, read_manifest

    path = find_model(arguments.model)
    manifest = read_manifest(path)
    asked, bound = arguments.profile, manifest.profile if manifest else None
    if bound is not None and bound not in EFFORTS:
        raise UsageError(
            f"{manifest_path(path)}: profile {bound!r}: known are {', '.join(EFFORTS)}"
        )
    if asked and bound and asked != bound:
        raise UsageError(
            f"--profile {asked}: {manifest_path(path).name} binds the model to {bound}"
        )
    return cast("Profile", asked or bound or "preview")


def sampling(arguments: argparse.Namespace) -> Sampling:
    """What ``add_sampling`` describes."""
    from pyds4.sampling import Sampling

    return Sampling(
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        seed=arguments.seed,
    )
