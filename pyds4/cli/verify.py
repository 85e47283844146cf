"""``pyds4 verify``: measure a model on text, against another file or captured answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pyds4.cli import options
from pyds4.cli.console import Progress, print_table
from pyds4.cli.failure import UsageError

EPILOG = """\
--text takes UTF-8 text, or a .jsonl file of {"messages": […]} or {"text": …} a line. With
--against, the other file is the reference. --vectors takes answers captured from an API with
log probabilities; see docs/files.md. A limit that is not kept makes the exit status 1.

examples:
  pyds4 verify model-q2.gguf --text book.txt
  pyds4 verify model-q2.gguf --against model-q8.gguf --text chats.jsonl --max-kl 0.1
  pyds4 verify model.gguf --vectors captured.json --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="the GGUF file to check")
    parser.add_argument("--text", metavar="FILE", help="what to measure on")
    parser.add_argument("--against", metavar="MODEL2", help="the reference; needs --text")
    parser.add_argument(
        "--vectors", metavar="FILE", help="captured answers (default: those of its manifest)"
    )
    parser.add_argument(
        "--chunk", type=options.integer(2), default=512, metavar="N",
        help="tokens read in one go, from an empty context (default: 512)",
    )  # fmt: skip
    parser.add_argument(
        "--answers", action="store_true", help="score only what stands in the answers of chats"
    )
    parser.add_argument("--limit", type=options.integer(2), metavar="N", help="tokens in all")
    parser.add_argument("-k", type=options.integer(1), default=10, help="of top-k (default: 10)")
    parser.add_argument(
        "--profile", choices=("preview", "0731"), help="default: the manifest's, else preview"
    )
    parser.add_argument("--max-kl", type=float, metavar="NATS", help="of the mean KL divergence")
    parser.add_argument("--min-top1", type=float, metavar="SHARE", help="agreement, from 0 to 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_engine(parser)


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.files.corpus import read_corpus
    from pyds4.files.verify import compare_models, compare_vectors, score_text

    vectors = _vectors(arguments)
    if not (arguments.text or vectors):
        raise UsageError(
            "nothing to measure on: give --text FILE or --vectors FILE (its manifest binds none)"
        )
    if arguments.against and not arguments.text:
        raise UsageError("--against needs --text FILE")
    profile = options.profile(arguments)
    report: dict[str, Any] = {"model": arguments.model}
    top1: float | None = None
    kl: float | None = None
    with options.open_engine(arguments) as engine, Progress("verify") as progress:
        for path in vectors:
            captured = compare_vectors(engine, path, profile=profile)
            key = "vectors" if len(vectors) == 1 else f"vectors {path.name}"
            report[key], top1 = captured.as_json(), min(captured.top1, top1 or 1.0)
        if arguments.text:
            documents = read_corpus(
                Path(arguments.text), engine.tokenizer, chunk=arguments.chunk,
                profile=profile,
            )  # fmt: skip
            documents = _first(documents, arguments.limit)
            if arguments.against:
                other = argparse.Namespace(**{**vars(arguments), "model": arguments.against})
                with options.open_engine(other) as reference:
                    found = compare_models(
                        engine,
                        reference,
                        documents,
                        k=arguments.k,
                        answers=arguments.answers,
                        progress=progress.update,
                    )
                report["against"], report["comparison"] = arguments.against, found.as_json()
                top1, kl = found.top1, found.kl_mean
            else:
                score = score_text(
                    engine, documents, answers=arguments.answers, progress=progress.update
                )
                report["text"] = {**vars(score), "perplexity": score.perplexity}
    broken = _broken(arguments, top1, kl)
    report["limits_broken"] = broken
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 1 if broken else 0


def _vectors(arguments: argparse.Namespace) -> list[Path]:
    """Captured answers to compare with: those given, or without a text those of the manifest."""
    from pyds4.files.manifest import read_manifest

    if arguments.vectors:
        return [Path(arguments.vectors)]
    manifest = None if arguments.text else read_manifest(arguments.model)
    return [Path(arguments.model).with_name(v.name) for v in manifest.vectors] if manifest else []


def _first(documents: list[list[int]], limit: int | None) -> list[list[int]]:
    if limit is None:
        return documents
    kept: list[list[int]] = []
    for document in documents:
        document = document[:limit]
        if len(document) > 1:
            kept.append(document)
        limit -= len(document)
        if limit < 2:
            break
    return kept


def _broken(arguments: argparse.Namespace, top1: float | None, kl: float | None) -> list[str]:
    broken = []
    if arguments.max_kl is not None:
        if kl is None:
            raise UsageError("--max-kl needs --against")
        if kl > arguments.max_kl:
            broken.append(f"mean KL {kl:.4f} is above {arguments.max_kl}")
    if arguments.min_top1 is not None:
        if top1 is None:
            raise UsageError("--min-top1 needs --against or --vectors")
        if top1 < arguments.min_top1:
            broken.append(f"top-1 agreement {top1:.4f} is below {arguments.min_top1}")
    return broken


def _print(report: dict[str, Any]) -> None:
    rows = []
    for name in (key for key in report if key.startswith("vectors")):
        rows += [[f"{name}: {key}", _number(value)] for key, value in report[name].items()]
    for side in ("model", "reference"):
        if "comparison" in report:
            score = report["comparison"][side]
            rows += [[f"{side}: {key}", _number(value)] for key, value in score.items()]
    if "comparison" in report:
        rest = {k: v for k, v in report["comparison"].items() if not isinstance(v, dict)}
        rows += [[key, _number(value)] for key, value in rest.items()]
    if "text" in report:
        rows += [[key, _number(value)] for key, value in report["text"].items()]
    print_table(["measure", "value"], rows, right=(1,))
    for broken in report["limits_broken"]:
        print(f"not kept: {broken}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.5f}"
