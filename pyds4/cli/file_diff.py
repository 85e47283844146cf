"""``pyds4 inspect FILE --diff FILE2``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pyds4.cli.console import print_table

if TYPE_CHECKING:
    from pyds4.model_file import ModelFile


def show_diff(a: ModelFile, b: ModelFile, data: bool, as_json: bool) -> int:
    """Print the differences; the exit status is that of diff(1)."""
    from pyds4.files.diff import compare_files

    diff = compare_files(a, b, data=data)
    if as_json:
        print(json.dumps(diff.as_json(), ensure_ascii=False, indent=2))
        return 0 if diff.is_empty else 1
    if diff.is_empty:
        print("no difference" if data else "no difference in the headers")
        return 0
    rows = [[key, str(x), str(y)] for key, (x, y) in diff.metadata.items()]
    rows += [[key, "present", ""] for key in diff.only_in_a]
    rows += [[key, "", "present"] for key in diff.only_in_b]
    if rows:
        print_table(["metadata", a.paths[0], b.paths[0]], rows)
        print()
    rows = [[name, "present", "", ""] for name in diff.tensors_only_in_a]
    rows += [[name, "", "present", ""] for name in diff.tensors_only_in_b]
    for tensor in diff.tensors:
        sides = [
            f"{kind} {' × '.join(map(str, shape))}"
            for kind, shape in zip(tensor.types, tensor.shapes, strict=True)
        ]
        error = "" if tensor.error is None else f"{tensor.error:.3e}"
        rows.append([tensor.name, *sides, error])
    if rows:
        print_table(["tensor", a.paths[0], b.paths[0], "error"], rows, right=(3,))
    return 1
