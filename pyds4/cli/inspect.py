"""``pyds4 inspect``: what is in a GGUF file, and the memory that running it needs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyds4.cli import options
from pyds4.cli.console import print_table, size
from pyds4.cli.tensor_roles import role
from pyds4.errors import PyDS4Error, UnsupportedModelError

if TYPE_CHECKING:
    from pyds4.model_file import ModelFile

EPILOG = """\
Only the header is read, so files of any size open at once. Any GGUF file can be inspected; the
memory part is for models that pyds4 runs.

examples:
  pyds4 inspect model.gguf
  pyds4 inspect model.gguf --context 8k,128k --json
"""

SHOWN_ELEMENTS = 16
"""Longer arrays are described by type and length."""

_CONTEXTS = (4096, 32768, 131072, 262144, 1048576)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="a GGUF file (default: the default model)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--diff",
        metavar="FILE2",
        help="show only what distinguishes FILE2; exits with 1 if anything",
    )
    parser.add_argument(
        "--data", action="store_true", help="with --diff: compare the numbers too, not only headers"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "-c",
        "--context",
        type=options.integers(1),
        metavar="N[,N…]",
        help="context sizes in tokens to give the memory for (8k means 8192)",
    )


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.default_model import find_model
    from pyds4.model_file import ModelFile

    file = ModelFile(find_model(arguments.file))
    if arguments.diff is not None:
        from pyds4.cli.file_diff import show_diff

        return show_diff(file, ModelFile(arguments.diff), arguments.data, arguments.json)
    report = _report(file, arguments.context, with_tensors=arguments.tensors)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(report)
    return 0


def _report(file: ModelFile, contexts: list[int] | None, *, with_tensors: bool) -> dict[str, Any]:
    """Everything there is to say, as plain data. Sizes in bytes."""
    tensors = file.tensors
    report: dict[str, Any] = {
        "paths": file.paths,
        "byte_count": file.byte_count,
        "tensor_count": len(tensors),
        "parameter_count": sum(_elements(tensor.shape) for tensor in tensors),
        "metadata": {key: _value(file, key) for key in file},
        "types": _groups([(tensor.type, tensor) for tensor in tensors]),
        "roles": _groups([(role(tensor.name), tensor) for tensor in tensors]),
        "uncomputable_types": sorted(
            {tensor.type for tensor in tensors if not tensor.computable and tensor.type != "i32"}
        ),
    }
    try:
        limit = file.get(f"{file.get('general.architecture')}.context_length")
        report["memory"] = [
            {
                "context": context,
                "weights": need.weights,
                "kv": need.kv,
                "buffers": need.buffers,
                "total": need.total,
            }
            for context in _contexts(contexts, limit)
            for need in [file.memory(context)]
        ]
    except UnsupportedModelError as error:
        report["memory"], report["memory_error"] = None, str(error)
    if with_tensors:
        report["tensors"] = [
            {
                "name": tensor.name,
                "type": tensor.type,
                "shape": list(tensor.shape),
                "byte_count": tensor.byte_count,
                "offset": tensor.offset,
                "file_index": tensor.file_index,
            }
            for tensor in tensors
        ]
    return report


def _contexts(wanted: list[int] | None, limit: object) -> list[int]:
    if wanted:
        return wanted
    if not isinstance(limit, int) or limit < 1:
        return list(_CONTEXTS[:3])
    return [context for context in _CONTEXTS if context < limit] + [limit]


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _value(file: ModelFile, key: str) -> Any:
    kind, count = file.describe(key)
    if count > SHOWN_ELEMENTS:
        return {"type": kind, "count": count}
    try:
        return file[key]
    except PyDS4Error:  # an array of arrays
        return {"type": kind, "count": count}


def _groups(tensors: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Tensor count and bytes by key, the largest first."""
    groups: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors:
        group = groups.setdefault(key, {"name": key, "tensors": 0, "parameters": 0, "bytes": 0})
        group["tensors"] += 1
        group["parameters"] += _elements(tensor.shape)
        group["bytes"] += tensor.byte_count
    return sorted(groups.values(), key=lambda group: -group["bytes"])


def _print(report: dict[str, Any]) -> None:
    for path in report["paths"]:
        print(path)
    print(
        f"{size(report['byte_count'])}, {report['tensor_count']} tensors, "
        f"{_count(report['parameter_count'])} parameters\n"
    )
    rows = [(key, _shown(value)) for key, value in report["metadata"].items()]
    print_table(("metadata", "value"), rows)
    for title in ("types", "roles"):
        print()
        _print_groups(title.removesuffix("s"), report[title], report["byte_count"])
    if "tensors" in report:
        print()
        _print_tensors(report["tensors"])
    print()
    if report["memory"] is None:
        print(f"memory: {report['memory_error']}")
    else:
        headers = ("context", "weights", "attention memory", "buffers", "total")
        memory = [
            (
                f"{need['context']:,}",
                *(size(need[k]) for k in ("weights", "kv", "buffers", "total")),
            )
            for need in report["memory"]
        ]
        print_table(headers, memory, right=range(5))
    if report["uncomputable_types"]:
        print(f"\npyds4 does not compute with: {', '.join(report['uncomputable_types'])}")


def _print_groups(title: str, groups: list[dict[str, Any]], whole: int) -> None:
    rows = [
        (
            group["name"],
            str(group["tensors"]),
            _count(group["parameters"]),
            size(group["bytes"]),
            f"{100 * group['bytes'] / whole:.1f} %",
        )
        for group in groups
    ]
    print_table((title, "tensors", "parameters", "size", "share"), rows, right=(1, 2, 3, 4))


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    rows = [
        (
            tensor["name"],
            tensor["type"],
            " × ".join(str(extent) for extent in tensor["shape"]),
            size(tensor["byte_count"]),
        )
        for tensor in tensors
    ]
    print_table(("tensor", "type", "shape", "size"), rows, right=(3,))


def _shown(value: Any) -> str:
    """A metadata value in one line of a table; control characters are escaped."""
    if isinstance(value, dict):
        return f"{value['type']}, {value['count']:,} elements"
    if isinstance(value, str):
        short = value if len(value) <= 100 else value[:99] + "…"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return str(value)


def _count(number: int) -> str:
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)
