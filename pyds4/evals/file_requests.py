"""What users ask of tools for files and of a shell, one call each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from pyds4.evals import files
from pyds4.evals.programs import FUNCTIONS
from pyds4.evals.requests import Request
from pyds4.evals.source import Source, wordings
from pyds4.evals.toolbox import Tool

_WRITE_LINE = wordings("""
Create a file {f} with the content {s} | Write "{s}" to {f} | Create {f} containing: {s}
create the file {f} with content: {s} | Make a new file {f} with the text "{s}" | Save "{s}" in {f}
Put the text {s} into a file named {f} | create file {f} with content {s} | Write {s} into {f}
Write the text "{s}" to the file {f}. | Create {f} with the content {s} | Create {f} with: {s}
Make a file called {f} that contains {s} | Create a file named {f} with the text {s}
I need a file {f} with the content {s} | Please create {f} with the text {s} | Store "{s}" in {f}
""")
_WRITE_LINES = wordings(r"""
Create {f} with this content:\n{s} | Write this to {f}:\n\n{s} | Save the following as {f}:\n{s}
Create the file {f} with these lines:\n{s} | Put this into {f}:\n{s}
""")
_WRITE_CODE = wordings("""
Create {f} with a Python function to {d}. | Write a Python function to {d} into {f}
Write a function to {d} and save it as {f}. | Make a file {f} with a function to {d}.
""")
_EDIT = wordings("""
In {f}, replace {a} with {b}. | Replace {a} with {b} in {f} | Change {a} to {b} in {f}.
Edit {f}: replace "{a}" by "{b}". | In the file {f} change "{a}" to "{b}" | {f}: {a} -> {b}
Please edit {f} and change {a} to {b}. | Replace "{a}" with "{b}" in {f}
""")
_RUN = wordings("""
Run {c} | Run the command {c} | Execute `{c}` | run `{c}` | Please run this command: {c}
Use {n} to run {c} | Run `{c}` and show me the output. | Execute the command {c} | {n}: {c}
""")
_LIST = wordings("""
List the files in {d} | What files are in {d}? | ls {d} | Show me the files in {d}. | List {d}
Which files does the directory {d} have? | What is in the folder {d}?
""")
LIST_HERE = wordings("""
List the files here. | What files are in this directory? | List files | ls | What files are here?
Which files are in the current directory? | List the files | Show me the files | List all files.
What is in this folder? | Which files are there?
""")
_SAID_DONE = {
    "Run the tests": "python -m pytest",
    "Show the current directory": "pwd",
    "In which directory are we?": "pwd",
    "Show the git status": "git status",
    "What is the git status?": "git status",
    "Show the disk usage": "df -h",
    "Which user am I on this machine?": "whoami",
    "Show the last commits": "git log --oneline",
    "Which Python version is installed?": "python --version",
    "What date is it?": "date",
    "Which operating system is this?": "uname -a",
}


def missing(source: Source, path: str) -> str:
    """What a tool says when there is no such file."""
    return source.pick(files.NOT_FOUND).replace("{f}", path)


def mention(source: Source, path: str) -> str:
    """How a user writes a path."""
    return source.pick([path, path, path, path, f"the file {path}", f"`{path}`"])


def new_file(source: Source) -> tuple[str, str, str]:
    """A request to create a file: (request, path, content)."""
    if source.chance(0.25):
        path, does = source.path("py"), source.pick(list(FUNCTIONS))
        return source.pick(_WRITE_CODE).format(f=path, d=does), path, f"{FUNCTIONS[does]}\n"
    path = source.path()
    if source.chance(0.7):
        text = source.line()
        if source.chance(0.3):
            text = source.pick(["hello", "Hello world", "Hello, world!", "test", source.word()])
        return source.pick(_WRITE_LINE).format(f=path, s=text), path, text
    text = "\n".join(source.line() for _ in range(source.integer(2, 5)))
    return source.pick(_WRITE_LINES).format(f=path, s=text), path, text


def written(source: Source, path: str, text: str) -> str:
    """What a tool says after writing."""
    return source.pick(
        [
            f"Successfully wrote {len(text)} bytes to {path}",
            "OK",
            "ok",
            f"File {path} written.",
            f"File created successfully at: {path}",
            json.dumps({"success": True}),
            f"Wrote {path}",
        ]
    )


def _read(source: Source, tool: Tool) -> Request:
    path = source.path()
    text, question = files.content(source, source.budget // 4)
    ask = question.text.replace("{f}", mention(source, path))
    goal, arguments = f"something from {path}", {"path": path}
    if question.kind == "show" and "limit" in tool.names and source.chance(0.25):
        limit = source.integer(1, 6)
        lines = [*text.split("\n"), *(source.line() for _ in range(limit))][:limit]
        first = source.pick([f"Show me the first {limit} lines of {path}.",
                             f"Read {limit} lines of {path}"])  # fmt: skip
        shown = "\n".join(lines)
        return Request(first, goal, arguments | {"limit": limit}, shown, question.reasoning,
                       f"The file contains:\n{shown}")  # fmt: skip
    if source.chance(0.06):
        answer = f"I could not read {path}: the file does not exist."
        failed = missing(source, path)
        return Request(ask, goal, arguments, failed, "The file does not exist.", answer)
    style = 0 if question.kind == "show" else source.pick([0, 0, 0, 1, 2])
    result = files.numbered(text, style)
    return Request(ask, goal, arguments, result, question.reasoning, question.answer)


def _write(source: Source, tool: Tool) -> Request:
    ask, path, text = new_file(source)
    arguments = {"path": path, "content": text}
    result = written(source, path, text)
    return Request(ask, f"a new file {path}", arguments, result, "The file is written.",
                   f"I created {path}.")  # fmt: skip


def _edit(source: Source, tool: Tool) -> Request:
    path, old, new = source.path(), source.phrase(1, 3), source.phrase(1, 3)
    if source.chance(0.3):
        name = source.identifier()
        old, new = f"{name} = {source.integer(0, 99)}", f"{name} = {source.integer(100, 999)}"
    ask = source.pick(_EDIT).format(f=path, a=old, b=new)
    arguments: dict[str, Any] = {"path": path, "old": old, "new": new}
    if tool.purpose == "edits":
        pair = tool.schema["parameters"]["properties"][tool.names["edits"]]["items"]
        keys = list(pair["properties"])
        arguments = {"path": path, "edits": [{keys[0]: old, keys[1]: new}]}
    elif "all" in tool.names and source.chance(0.4):
        arguments["all"] = True
        ask = ask.rstrip(".") + source.pick([", all occurrences.", " everywhere."])
    goal = f"a change in {path}"
    if source.chance(0.07):
        failed = source.pick(["Error: text not found", f"Could not find the text in {path}."])
        answer = f"I could not edit {path}: the text was not found."
        return Request(ask, goal, arguments, failed, "The text was not found.", answer)
    result = edited(source, path)
    answer = f"I replaced {old} with {new} in {path}."
    return Request(ask, goal, arguments, result, "The edit worked.", answer)


def edited(source: Source, path: str) -> str:
    """What a tool says after an edit."""
    says = ["OK", "1 replacement made.", f"The file {path} has been updated.", "Edited."]
    return source.pick([*says, f"Successfully replaced text in {path}."])


def command(source: Source, name: str) -> tuple[str, str]:
    """A request that a shell answers, and the command."""
    path = source.path()
    if source.chance(0.3):
        line = source.pick(
            [
                f"ls -la {source.word().lower()}",
                "pwd",
                "git status",
                f"cat {path}",
                f"wc -l {path}",
                "df -h",
                "uname -a",
                f"python {source.path('py')}",
                f"mkdir {source.identifier()}",
                "date",
                f"echo {source.phrase(1, 4)}",
                f"grep -rn {source.word()} .",
                f"rm {path}",
                "make",
                "npm test",
                f"pip install {source.word().lower()}",
                f"head -n {source.integer(1, 20)} {path}",
            ]
        )
        return source.pick(_RUN).format(c=line, n=name), line
    folder = source.identifier()
    script = source.path("py")
    said = {
        **_SAID_DONE,
        f"Run {script}": f"python {script}",
        f"Delete {path}": f"rm {path}",
        f"Make a directory {folder}": f"mkdir {folder}",
        f"Create a folder {folder}": f"mkdir {folder}",
    }
    return source.pick(list(said.items()))


def _bash(source: Source, tool: Tool) -> Request:
    ask, line = command(source, tool.name)
    arguments: dict[str, Any] = {"command": line}
    if "timeout" in tool.names and source.chance(0.2):
        arguments["timeout"] = limit = source.integer(1, 600)
        ask += source.pick([f" with a timeout of {limit} seconds", f" (timeout {limit})"])
    output = source.pick(["", source.line(), "\n".join(source.line() for _ in range(3))])
    answer = f"The output is:\n{output}" if output else "The command ran without output."
    result = output if output or source.chance(0.6) else "(no output)"
    return Request(ask, f"to run {line}", arguments, result, "The command has finished.", answer)


def _list(source: Source, tool: Tool) -> Request:
    folder = source.pick([".", "/tmp", "src", "docs", "/home/user", source.identifier(), "tests"])
    names = list(dict.fromkeys(source.file_name() for _ in range(source.integer(1, 6))))
    ask = source.pick(_LIST).format(d=folder)
    if folder == "." and source.chance(0.7):
        ask = source.pick(LIST_HERE)
    result = source.pick(["\n".join(names), json.dumps(names)])
    answer = "The files are: " + ", ".join(names)
    goal = f"the files in {folder}"
    return Request(ask, goal, {"path": folder}, result, "I list the files.", answer)


def _grep(source: Source, tool: Tool) -> Request:
    pattern = source.pick([source.word(), source.identifier(), source.phrase(1, 2), "TODO"])
    arguments, goal = {"pattern": pattern}, f"to find {pattern}"
    ask = "Search for {w}|Find {w} in the code|Where does {w} occur?|grep {w}|Which files have {w}?"
    if "path" in tool.names and source.chance(0.6):
        arguments["path"] = source.pick([".", "src", source.path(), source.word().lower()])
        ask = "Search for {w} in {d}|grep {w} in {d}|Where does {w} occur in {d}?|Find {w} in {d}."
    text = source.pick(ask.split("|")).format(w=pattern, d=arguments.get("path"))
    if source.chance(0.15):
        failed = source.pick(["No matches found.", "", "no results"])
        answer = f"I found no match for {pattern}."
        return Request(text, goal, arguments, failed, "There is no match.", answer)
    paths = list(dict.fromkeys(source.path() for _ in range(source.integer(1, 3))))
    result = "\n".join(
        f"{path}:{source.integer(1, 300)}: {pattern} {source.phrase(1, 3)}" for path in paths
    )
    answer = f"I found {pattern} in: " + ", ".join(paths)
    return Request(text, goal, arguments, result, "I list the files with a match.", answer)


def _glob(source: Source, tool: Tool) -> Request:
    end = source.pick(["py", "js", "c", "md", "json"])
    patterns = [
        "*.py",
        "*.txt",
        "**/*.md",
        f"*.{end}",
        f"{source.word().lower()}*",
        f"src/**/*.{end}",
    ]
    pattern = source.pick(patterns)
    names = list(dict.fromkeys(source.path() for _ in range(source.integer(1, 4))))
    ask = "Find files matching {p}|Which files match {p}?|Find all {p} files.|glob {p}"
    text = source.pick(ask.split("|")).format(p=pattern)
    answer = "The files are: " + ", ".join(names)
    goal = f"the files that match {pattern}"
    return Request(text, goal, {"pattern": pattern}, "\n".join(names), "I list the files.", answer)


_MAKERS: Final[dict[str, Callable[[Source, Tool], Request]]] = {
    "read": _read,
    "write": _write,
    "edit": _edit,
    "edits": _edit,
    "bash": _bash,
    "list": _list,
    "grep": _grep,
    "glob": _glob,
}


def file_request(source: Source, tool: Tool) -> Request:
    """A request that ``tool``, which is about files, answers in one call."""
    return _MAKERS[tool.purpose](source, tool)


def is_about_files(tool: Tool) -> bool:
    """Whether ``file_request`` knows the tool's purpose."""
    return tool.purpose in _MAKERS
