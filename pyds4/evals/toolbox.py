"""Tools as clients declare them: many names, descriptions and schema styles for each purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pyds4.evals.prompts import GUIDELINES
from pyds4.evals.sample import Call, Schema
from pyds4.evals.source import Source, wordings


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a purpose: ``key`` is what we call it, ``names`` what clients do."""

    key: str
    names: tuple[str, ...]
    kind: str
    about: tuple[str, ...]
    required: bool = True
    extra: Schema = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a tool is for, and how it may be declared."""

    key: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared tool: ``names`` maps our parameter keys to the client's."""

    purpose: str
    name: str
    schema: Schema
    names: dict[str, str]

    def call(self, arguments: dict[str, Any]) -> Call:
        """A call with our keys, under the client's names."""
        return Call(self.name, {self.names[key]: value for key, value in arguments.items()})


def _parameter(
    key: str, names: str, kind: str, about: str, required: bool = True, **extra: Any
) -> Parameter:
    return Parameter(key, tuple(names.split()), kind, tuple(wordings(about)), required, extra)


_PATH = "path path path file_path filePath filename file"
_PAIR: Final[Schema] = {
    "type": "object",
    "properties": {"oldText": {"type": "string"}, "newText": {"type": "string"}},
    "required": ["oldText", "newText"],
}
_ITEM: Final[Schema] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "quantity": {"type": "integer"}},
    "required": ["name", "quantity"],
}


def _purpose(key: str, names: str, about: str, *parameters: Parameter) -> Purpose:
    return Purpose(key, tuple(names.split()), tuple(wordings(about)), parameters)


P = _parameter
PURPOSES: Final = {
    purpose.key: purpose
    for purpose in (
        _purpose(
            "weather",
            "get_weather get_weather weather get_current_weather current_weather weather_lookup",
            "Get the current weather for a city. | Get the weather | Get the weather for a city."
            "| Returns the weather in a given location. | Look up current weather conditions.",
            P("city", "city location place city", "string", "The city|City name|e.g. Paris"),
            P("unit", "unit units", "string", "Unit", False, enum=["celsius", "fahrenheit"]),
        ),
        _purpose(
            "calculator",
            "calculator calculate calc evaluate math_eval",
            "Evaluate an arithmetic expression.|A calculator.|Compute a math expression.",
            P("expression", "expression expr formula input", "string", "The expression|e.g. 2+2"),
        ),
        _purpose(
            "search",
            "web_search search search_web google websearch",
            "Search the web.|Search the internet for information.|Run a web search.",
            P("query", "query q search_query", "string", "The search query|What to search for"),
            P("count", "max_results limit num_results", "integer", "Maximum of results", False),
        ),
        _purpose(
            "read",
            "read read read_file read_file Read view open_file get_file cat_file",
            "Read a file.|Read the contents of a file.|Reads a file from the local filesystem."
            "|Return the text of a file. Supports text files.|Read a text file and return it."
            "|Read the contents of a file. Supports text files and images (jpg, png, gif, webp).",
            P("path", _PATH, "string", "Path to the file to read|The file path|The path of the file"
              "|Path to the file to read (relative or absolute)"),
            P("offset", "offset start_line", "integer", "Line to start reading from", False),
            P("limit", "limit max_lines", "integer", "Maximum number of lines to read", False),
        ),
        _purpose(
            "write",
            "write write write_file write_file Write create_file save_file",
            "Write content to a file.|Create or overwrite a file.|Write text to a file."
            "|Write content to a file. Creates the file if it doesn't exist, overwrites if it does."
            "|Writes a file to the local filesystem. Creates the file if it does not exist.",
            P("path", _PATH, "string", "Path to the file to write|The file path"),
            P("content", "content content contents text file_text", "string",
              "Content to write to the file|The text to write"),
        ),
        _purpose(
            "edit",
            "edit edit edit_file Edit str_replace replace_in_file",
            "Edit a file by replacing exact text.|Replace text in a file.|Edit a file."
            "|Performs exact string replacements in files.",
            P("path", _PATH, "string", "Path to the file to edit|The file path"),
            P("old", "old_string oldText old_text old_str old", "string",
              "Exact text to find|The text to replace"),
            P("new", "new_string newText new_text new_str new", "string",
              "New text|The replacement text"),
            P("all", "replace_all all_occurrences", "boolean", "All occurrences", False),
        ),
        _purpose(
            "edits",
            "edit edit multi_edit edit_file",
            "Edit a file using exact text replacement. Every old text must match."
            "|Apply several replacements to one file."
            "|Edit a single file using exact text replacement. Every oldText must be unique.",
            P("path", _PATH, "string", "Path to the file to edit"),
            P("edits", "edits changes", "array", "One or more replacements", items=_PAIR),
        ),
        _purpose(
            "bash",
            "bash bash bash Bash run_command shell execute terminal exec",
            "Run a bash command.|Execute a shell command and return its output."
            "|Execute a bash command|Run a command in the terminal."
            "|Execute a bash command in the current working directory. Returns stdout and stderr.",
            P("command", "command command command cmd", "string",
              "The command to run|Bash command to execute|The bash command to execute"),
            P("timeout", "timeout timeout_s", "number", "Timeout in seconds (optional)", False),
        ),
        _purpose(
            "list",
            "ls ls list_dir list_files LS list_directory",
            "List the files in a directory.|List directory contents.|Lists files and folders.",
            P("path", "path path dir directory", "string", "Directory to list"),
        ),
        _purpose(
            "grep",
            "grep grep Grep search_files find_text",
            "Search file contents for a pattern.|Find a text pattern in files.",
            P("pattern", "pattern pattern query regex", "string", "The pattern|Text or regex"),
            P("path", "path directory", "string", "File or directory to search in", False),
        ),
        _purpose(
            "glob",
            "glob find_files Glob find",
            "Find files by name pattern.|Find files matching a glob pattern.",
            P("pattern", "pattern glob", "string", "Glob pattern, e.g. *.py|The glob pattern"),
        ),
        _purpose(
            "time",
            "get_time current_time get_current_time time_now",
            "Get the current time in a city.|Returns the local time.",
            P("city", "city timezone location", "string", "The city|City or timezone"),
        ),
        _purpose(
            "translate",
            "translate translate_text translator",
            "Translate text into another language.",
            P("text", "text input", "string", "The text to translate"),
            P("language", "target_language language to target", "string", "Target language"),
        ),
        _purpose(
            "email",
            "send_email email send_mail send_message",
            "Send an email.|Send a message to a person.",
            P("to", "to recipient", "string", "The recipient"),
            P("subject", "subject title", "string", "The subject"),
            P("body", "body message text", "string", "The text of the message"),
        ),
        _purpose(
            "event",
            "create_event add_event calendar_add schedule",
            "Create a calendar event.",
            P("title", "title name summary", "string", "Title of the event"),
            P("date", "date day", "string", "Date, YYYY-MM-DD"),
            P("time", "time start_time", "string", "Start time, HH:MM", False),
            P("minutes", "duration_minutes duration", "integer", "Duration in minutes", False),
        ),
        _purpose(
            "timer",
            "set_timer timer start_timer",
            "Start a timer.|Set a timer for some minutes.",
            P("minutes", "minutes duration", "integer", "Minutes"),
            P("label", "label name", "string", "Label of the timer", False),
        ),
        _purpose(
            "stock",
            "get_stock_price stock_price stock quote",
            "Get the price of a stock.",
            P("symbol", "symbol ticker", "string", "Ticker symbol"),
        ),
        _purpose(
            "convert",
            "convert_currency currency exchange",
            "Convert an amount of money.",
            P("amount", "amount value", "number", "The amount"),
            P("source", "from_currency source from", "string", "Source currency"),
            P("target", "to_currency target to", "string", "Target currency"),
        ),
        _purpose(
            "light",
            "set_light switch_light light light_control",
            "Switch the light in a room on or off.",
            P("room", "room location", "string", "The room"),
            P("on", "on enabled state", "boolean", "true to switch on"),
        ),
        _purpose(
            "todo",
            "add_todo create_task add_task todo_add",
            "Add an item to the todo list.",
            P("item", "item title text task", "string", "What to do"),
            P("priority", "priority level", "string", "", False, enum=["low", "medium", "high"]),
        ),
        _purpose(
            "user",
            "get_user lookup_user find_user user_info",
            "Get a user by id.|Look up a user.",
            P("id", "id user_id uid", "integer", "The user id"),
        ),
        _purpose(
            "order",
            "create_order place_order order",
            "Create an order with several items.",
            P("customer", "customer name", "string", "Customer name"),
            P("items", "items products", "array", "Items to order", items=_ITEM),
        ),
        _purpose(
            "tags",
            "add_tags set_tags tag",
            "Add tags to a note.",
            P("note", "note note_id title", "string", "The note"),
            P("tags", "tags labels", "array", "Tags", items={"type": "string"}),
        ),
        _purpose(
            "multiply",
            "multiply multiply_numbers mul",
            "Multiply two numbers.",
            P("x", "x a first", "integer", "First number"),
            P("y", "y b second", "integer", "Second number"),
        ),
        _purpose(
            "music",
            "play_music play play_song",
            "Play a song.",
            P("song", "song title track", "string", "Name of the song"),
        ),
    )
}  # fmt: skip
"""Every purpose by its key. ``random`` stands for a tool nobody has seen before."""

CODING: Final = ("read", "bash", "edit", "write", "list", "grep", "glob")
"""What coding agents bring along."""


def declare(source: Source, key: str) -> Tool:
    """A tool of purpose ``key`` as some client would declare it."""
    purpose = PURPOSES[key]
    properties: Schema = {}
    required: list[str] = []
    names: dict[str, str] = {}
    for parameter in purpose.parameters:
        if not parameter.required and source.chance(0.45):
            continue
        name = source.pick(parameter.names)
        names[parameter.key] = name
        entry: Schema = {"type": parameter.kind}
        if source.chance(0.8) and parameter.about:
            entry["description"] = source.pick(parameter.about)
        properties[name] = entry | parameter.extra
        if parameter.required:
            required.append(name)
    about = source.pick(purpose.about)
    if source.chance(0.15):
        about += " " + " ".join(source.some(GUIDELINES, source.integer(1, 6)))
    name = source.pick(purpose.names)
    return Tool(key, name, _styled(source, name, about, properties, required), names)


def _styled(
    source: Source, name: str, about: str, properties: Schema, required: Sequence[str]
) -> Schema:
    """The schema in the manner of one client or another: same content, other order and extras."""
    style = source.integer(0, 7)
    need = {"required": list(required)} if required else {}
    if style == 0:  # sorted keys, closed
        entries = {key: dict(sorted(value.items())) for key, value in properties.items()}
        parameters: Schema = {
            "additionalProperties": False,
            "properties": entries,
            **need,
            "type": "object",
        }
    elif style == 1:  # titles from type annotations
        entries = {
            key: dict(sorted((value | {"title": key.replace("_", " ").title()}).items()))
            for key, value in properties.items()
        }
        parameters = {
            "properties": entries,
            **need,
            "title": f"{name}_args",
            "type": "object",
            "additionalProperties": False,
        }
    elif style == 2:  # required first, description before type
        entries = {key: dict(sorted(value.items())) for key, value in properties.items()}
        parameters = {"type": "object", **need, "properties": entries}
    else:
        parameters = {"type": "object", "properties": properties, **need}
        if style == 3:
            parameters = {"$schema": "http://json-schema.org/draft-07/schema#", **parameters}
        if style <= 4:
            parameters["additionalProperties"] = False
    schema: Schema = {"name": name, "description": about, "parameters": parameters}
    if style <= 1 or source.chance(0.1):
        schema["strict"] = source.pick([False, True, True])
    return schema


def value_of(source: Source, kind: str) -> Any:
    """A value of JSON type ``kind``."""
    if kind == "string":
        makers = (source.word, source.code, source.path, source.identifier, source.phrase)
        return source.pick(makers)()
    if kind == "integer":
        return source.integer(0, 10 ** source.integer(1, 4))
    if kind == "number":
        return source.integer(0, 999) if source.chance(0.5) else round(source.random.random(), 1)
    if kind == "boolean":
        return source.chance(0.5)
    return [source.word() for _ in range(source.integer(1, 4))]


def invent(source: Source) -> Tool:
    """A tool nobody has seen: the schema says everything there is to know."""
    verbs = "make find update delete check open close count fetch start stop list merge test load"
    verb = source.pick([*verbs.split(), source.nonsense()])
    noun = source.word().lower()
    name = source.pick(
        [
            f"{verb}_{noun}",
            f"{verb}{noun.title()}",
            f"{noun}_{verb}",
            f"{verb}-{noun}",
            noun,
            f"mcp__{source.word().lower()}__{verb}_{noun}",
        ]
    )
    properties: Schema = {}
    for _ in range(source.integer(0, 4)):
        kinds = ["string", "string", "string", "integer", "number", "boolean", "array"]
        key, kind = source.identifier(), source.pick(kinds)
        entry: Schema = {"type": kind}
        if source.chance(0.7):
            entry["description"] = f"The {key.replace('_', ' ')}"
        if kind == "array":
            entry["items"] = {"type": "string"}
        properties.setdefault(key, entry)
    about = source.pick(
        [
            f"{verb.title()} the {noun}.",
            f"{verb.title()} a {noun} and return the result.",
            f"Use this to {verb} the {noun}.",
        ]
    )
    schema = _styled(source, name, about, properties, list(properties))
    return Tool("random", name, schema, {key: key for key in properties})


_ALIKE: Final = ({"edit", "edits"}, {"search", "grep"}, {"calculator", "multiply"})
"""Purposes that the same words ask for."""


def toolset(source: Source, first: Sequence[str], count: int) -> list[Tool]:
    """At least one tool for each purpose in ``first``, ``count`` in all, names all different."""
    tools: list[Tool] = []
    taken: set[str] = set()
    purposes: set[str] = set()
    for wanted in [*first, *[None] * max(0, count - len(first))]:
        for _ in range(20):
            key = wanted or ("random" if source.chance(0.25) else source.pick(list(PURPOSES)))
            double = key in purposes and key != "random"
            alike = any(pair <= purposes | {key} for pair in _ALIKE)
            if wanted is None and (double or alike):
                continue
            tool = invent(source) if key == "random" else declare(source, key)
            if tool.name.lower() not in taken:
                tools.append(tool)
                taken.add(tool.name.lower())
                purposes.add(key)
                break
    return tools
