"""The ``pyds4`` command.

One module a command, each with ``configure(parser)`` and ``execute(arguments) -> status``. Only the
module of the command that was asked for is imported, and it imports the engine when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pyds4.cli.failure import CommandError, UsageError, one_line
from pyds4.errors import PyDS4Error

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "chat": "talk to a model in the terminal",
    "run": "answer one prompt on standard output",
    "serve": "serve the OpenAI and Anthropic APIs over HTTP",
    "launch": "run a coding agent on a local server: Claude Code, Codex, opencode, Pi",
    "kv": "look after the prefixes that are kept on disk",
    "eval": "score a model on the demo tasks, family by family",
    "inspect": "show what is in a GGUF file and the memory it needs",
    "tokenize": "turn text into token ids, and back",
    "bench": "measure prefill and decode speed, alone or beside llama-bench",
    "logits": "write the logits of every position of a token sequence",
    "synth": "write a synthetic model of any size",
    "download": "get a model from the hub, verified",
    "models": "list downloaded models, check or remove them",
    "imatrix": "measure which inputs matter, for quantising",
    "convert": "turn an original checkpoint (safetensors) into a GGUF file",
    "quantize": "write a GGUF file again in smaller types, or with tensors of other files",
    "verify": "measure a model on text, against another file or captured answers",
    "doctor": "say what this machine can run, and which files fit it",
}
"""Every command and what it is for."""

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's) and return its exit status.

    0 when all went well, 1 for an error (one line on standard error), 2 for a command line that
    makes no sense, 130 after Ctrl-C, 141 when the reader of standard output went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        # What follows -- is for the program that launch runs; argparse would look into it.
        cut = words.index("--") if words[:1] == ["launch"] and "--" in words else len(words)
        own, passed = words[:cut], words[cut + 1 :]
        parser = _parser(own)
        if not words:
            parser.print_help()
            return EXIT_USAGE
        arguments = parser.parse_args(own)
        arguments.passed = passed
        status: int = arguments.execute(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as done:  # argparse has said what it had to say
        return done.code if isinstance(done.code, int) else EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would complain again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except UsageError as error:
        return _fail(error, EXIT_USAGE)
    except (CommandError, PyDS4Error, OSError) as error:
        return _fail(error, EXIT_FAILURE)
    except MemoryError as error:
        return _fail(CommandError(f"out of memory: {error}"), EXIT_FAILURE)
    except ImportError as error:
        if error.name is not None:  # a module is broken or missing: a mistake, to be seen whole
            raise
        return _fail(error, EXIT_FAILURE)  # the engine's library was not found


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyds4",
        description="A local inference engine for DeepSeek-V4.",
        epilog="'pyds4 COMMAND --help' explains a command. Without --model, commands use the file "
        "named by PYDS4_MODEL, else the demo model that comes with pyds4.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version of package and engine"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            module = import_module(f"pyds4.cli.{name}")
            module.configure(command)
            command.set_defaults(execute=module.execute)
    return parser


class _Version(argparse.Action):
    """``--version``; the library is asked only now."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        from pyds4 import __version__
        from pyds4._native import lib, library_path, text

        instructions = text(lib.pyds4_instruction_set())
        print(f"pyds4 {__version__} ({instructions}; {library_path})")
        parser.exit()


def _fail(error: Exception, status: int) -> int:
    print(f"pyds4: error: {one_line(error)}", file=sys.stderr)
    return status
