"""``pyds4 serve``: the HTTP server. Every field of the server's settings is an option."""

from __future__ import annotations

import argparse
import logging
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyds4.cli import options
from pyds4.cli.console import note
from pyds4.cli.failure import CommandError, UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

EPILOG = """\
A configuration file is TOML with the same names: port = 8080, api_keys = ["…"], model = "x.gguf".
Options win over it. API keys may also stand in PYDS4_API_KEY (commas between several).

examples:
  pyds4 serve
  pyds4 serve --model model.gguf --port 8080 --context-tokens 131072
  PYDS4_API_KEY=secret pyds4 serve --host 0.0.0.0 --allowed-hosts my-machine.local
"""

_KEY_VARIABLE = "PYDS4_API_KEY"
_ENGINE_KEYS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "backend": (str,),
    "threads": (int,),
    "roundings": (bool, str),
}
"""Names in a configuration file that are not the server's but the engine's."""


def configure(parser: argparse.ArgumentParser) -> None:
    from pyds4_server.settings import Settings

    parser.epilog = EPILOG
    options.add_model(parser)
    parser.add_argument("--config", metavar="FILE", help="a TOML file with any of these options")
    parser.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    group = parser.add_argument_group("server")
    for name, field in Settings.model_fields.items():
        _add_field(group, name, field)
    options.add_engine(parser)
    # None means "not given", so that a configuration file can speak.
    parser.set_defaults(backend=None, roundings=None)


def execute(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError
    from pyds4_server import Settings, UnsafeBindError, logs, serve

    from pyds4.default_model import find_model

    given = _configuration(arguments.config) | {
        name: value
        for name in (*Settings.model_fields, *_ENGINE_KEYS)
        if (value := getattr(arguments, name)) is not None
    }
    if "api_keys" not in given and os.environ.get(_KEY_VARIABLE):
        given["api_keys"] = tuple(
            key.strip() for key in os.environ[_KEY_VARIABLE].split(",") if key.strip()
        )
    engine = {name: given.pop(name, None) for name in _ENGINE_KEYS}
    model = find_model(engine["model"])
    logs.configure(
        "json" if given.get("log_format") == "json" else "text",
        logging.WARNING if arguments.quiet else logging.INFO,
    )
    try:
        serve(
            model,
            backend=engine["backend"] or "auto",
            roundings=engine["roundings"] not in ("off", False),
            threads=engine["threads"],
            on_ready=lambda url: note(f"{model.name} is served at {url} (Ctrl-C ends it)"),
            **given,
        )
    except ValidationError as error:
        raise UsageError(_explain(error)) from None
    except UnsafeBindError as error:
        raise UsageError(f"{error} (PYDS4_API_KEY, --api-key-file)") from None
    return 0


def _add_field(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    """One option for one setting: its type decides the form, its description is the help."""
    flag = "--" + name.replace("_", "-")
    kind = _kind(field.annotation)
    help_text = f"{field.description or ''} {_default(field.default)}".strip().replace("%", "%%")
    if kind is bool:
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=None, help=help_text
        )
    elif typing.get_origin(kind) is tuple:
        group.add_argument(
            flag, action="append", metavar="TEXT", help=f"{help_text} May be repeated."
        )
    elif typing.get_origin(kind) is typing.Literal:
        group.add_argument(flag, choices=typing.get_args(kind), help=help_text)
    else:
        # Any other value is text here; the settings convert and check it.
        metavar = {int: "N", float: "N", Path: "FILE"}.get(kind, "TEXT")
        group.add_argument(flag, metavar=metavar, help=help_text)


def _kind(annotation: Any) -> Any:
    """The type without ``| None``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (kind,) = (kind for kind in typing.get_args(annotation) if kind is not type(None))
        return kind
    return annotation


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f"(default: {shown})"


def _configuration(path: str | None) -> dict[str, Any]:
    """The values of a configuration file; names are checked with everything else."""
    if path is None:
        return {}
    try:
        values: Mapping[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: not TOML: {error}") from None
    named = {name.replace("-", "_"): value for name, value in values.items()}
    for name, kinds in _ENGINE_KEYS.items():
        if name in named and type(named[name]) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"{path}: {name}: expected {wanted}, found {named[name]!r}")
    return named


def _explain(error: ValidationError) -> str:
    """Each wrong setting by name, with what is wrong about it."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        flag = "--" + name.replace("_", "-")
        if problem["type"] == "extra_forbidden":
            found.append(f"{name}: no such setting")
        else:
            message = problem["msg"]
            shown = "" if "key" in name else f", found {problem['input']!r}"
            found.append(f"{flag}: {message[0].lower()}{message[1:]}{shown}")
    return "; ".join(found)
