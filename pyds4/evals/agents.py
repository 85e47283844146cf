"""Sessions of coding agents: several steps on files, with four tools or with a shell alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyds4.evals import files, prompts, small_talk, sums
from pyds4.evals.file_requests import (
    LIST_HERE,
    command,
    edited,
    mention,
    missing,
    new_file,
    written,
)
from pyds4.evals.sample import Answer, Call, Exchange, Sample, Schema
from pyds4.evals.source import Source, wordings
from pyds4.evals.tool_tasks import coding_tools, schemas
from pyds4.evals.toolbox import Tool, declare


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: ``verb`` is read, write, replace, run or list. ``gives`` is its result."""

    verb: str
    path: str
    gives: str
    why: str
    """The thought before it: a sentence."""
    content: str = ""
    new: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What a user asks, the steps to it, and what to say in the end."""

    text: str
    steps: tuple[Step, ...]
    reasoning: str
    answer: str


_SET = wordings("""
Set {x} to {v} in {f}. | In {f}, set {x} to {v}. | Change the value of {x} in {f} to {v}
Change the {x} in {f} to {v}. | Update {x} in {f} to {v}. | Make {x} {v} in {f}
{f}: set {x} to {v}
""")
_COPY_VALUE = wordings("""
Read {f} and write the value of {x} to {g}. | Write the {x} from {f} into {g}
Put {x} of {f} in {g}
Copy the value of {x} from {f} to {g}. | Take the {x} from {f} and save it in {g}.
Create {g} with the value of {x} from {f}. | Read the {x} in {f} and store it in {g}
""")
_CREATE_AND_RUN = wordings(r"""
Create {f} with the content {c} and run it. | Write {c} to {f}, then run it.
Make a file {f} with this line: {c}\nThen run it. | Create a script {f} with {c} and run it.
""")


def _tell(source: Source) -> Job:
    """Read a file and answer a question about it."""
    path = source.path()
    text, question = files.content(source, source.budget // 3)
    ask = question.text.replace("{f}", mention(source, path))
    if source.chance(0.06):
        answer = f"I could not read {path}: the file does not exist."
        step = Step("read", path, missing(source, path), f"I read {path}.", failed=True)
        return Job(ask, (step,), "The file does not exist.", answer)
    step = Step("read", path, text, f"I read {path}.")
    return Job(ask, (step,), question.reasoning, question.answer)


def _value(source: Source) -> Job:
    """Tell one setting: what people try first."""
    path = source.path(source.pick(["ini", "cfg", "txt", "json", "yaml", "toml", "conf", "env"]))
    file = files.settings(source)
    question = files.about_value(source, file)
    step = Step("read", path, file.text, f"I read {path}.")
    ask = question.text.replace("{f}", mention(source, path))
    return Job(ask, (step,), question.reasoning, question.answer)


def _create(source: Source) -> Job:
    ask, path, text = new_file(source)
    step = Step("write", path, "", f"I write {path}.", content=text)
    return Job(ask, (step,), "The file is written.", f"I created {path}.")


def _set(source: Source) -> Job:
    path, file = source.path(), files.settings(source)
    key, value = source.pick(list(file.values)), str(source.integer(1000, 9999))
    old = file.written[key]
    cut = old.rindex(file.values[key])
    new = old[:cut] + value + old[cut + len(file.values[key]) :]
    ask = source.pick(_SET).format(x=key, v=value, f=path)
    steps = (
        Step("read", path, file.text, f"First I read {path}."),
        Step("replace", path, "", f"The file says {old}.", content=old, new=new),
    )
    return Job(ask, steps, "The edit worked.", f"I set {key} to {value} in {path}.")


def _copy_value(source: Source) -> Job:
    path, target, file = source.path(), source.path("txt"), files.settings(source)
    key = source.pick(list(file.values))
    ask = source.pick(_COPY_VALUE).format(x=key, f=path, g=target)
    value = file.values[key]
    steps = (
        Step("read", path, file.text, f"First I read {path}."),
        Step("write", target, "", f"The value of {key} is {value}.", content=value),
    )
    return Job(ask, steps, "The file is written.", f"I wrote {value} to {target}.")


def _create_and_run(source: Source) -> Job:
    path = source.path("py")
    a, b, said = source.integer(1, 99), source.integer(1, 99), source.phrase(1, 4)
    code, output = source.pick([(f'print("{said}")', said), (f"print({a} + {b})", str(a + b))])
    ask = source.pick(_CREATE_AND_RUN).format(f=path, c=code)
    steps = (
        Step("write", path, "", f"First I write {path}.", content=code),
        Step("run", f"python {path}", f"{output}\n", f"Now I run {path}."),
    )
    answer = f"I created {path} and ran it. The output is:\n{output}"
    return Job(ask, steps, "The program has finished.", answer)


def _find(source: Source) -> Job:
    """Find the one file with some ending, then read it."""
    name = source.file_name()
    ending = name.rsplit(".", 1)[1]
    others = [source.file_name() for _ in range(source.integer(0, 4))]
    names = [other for other in others if not other.endswith(f".{ending}")] + [name]
    text, question = files.content(source, source.budget // 4)
    lead = source.pick([f"Find the {ending} file here.", f"There is a .{ending} file here."])
    steps = (
        Step("list", ".", "\n".join(source.shuffled(names)), f"I look for the {ending} file."),
        Step("read", name, text, f"The {ending} file is {name}."),
    )
    ask = f"{lead} {question.text.replace('{f}', 'it')}"
    return Job(ask, steps, question.reasoning, question.answer)


def _list_here(source: Source) -> Job:
    names = list(dict.fromkeys(source.file_name() for _ in range(source.integer(1, 7))))
    step = Step("list", ".", "\n".join(names), "I list the files.")
    answer = "The files are: " + ", ".join(names)
    return Job(source.pick(LIST_HERE), (step,), "I list the files.", answer)


def _run(source: Source) -> Job:
    ask, line = command(source, "bash")
    output = source.pick(["", source.line(), "\n".join(source.line() for _ in range(3))])
    answer = f"The output is:\n{output}" if output else "The command ran without output."
    step = Step("run", line, f"{output}\n" if output else "", f"I run {line}.")
    return Job(ask, (step,), "The command has finished.", answer)


_FILE_JOBS: Final = (_tell, _tell, _value, _value, _create, _create, _set, _copy_value, _find)
_SHELL_JOBS: Final = (*_FILE_JOBS, _create_and_run, _list_here, _run)


class _Tools:
    """Turns steps into calls of the tools that are there; a shell stands in for any other."""

    def __init__(self, source: Source, tools: Sequence[Tool]) -> None:
        self._source = source
        self._by_purpose = {tool.purpose: tool for tool in tools}
        self._observe = source.pick([_plain, _plain, _plain, _as_json, _tagged])
        if len(tools) > 1:
            self._observe = _plain

    def can(self, step: Step) -> bool:
        """Whether some tool does it."""
        return self._own(step) is not None or "bash" in self._by_purpose

    def _own(self, step: Step) -> Tool | None:
        purpose = {"read": "read", "write": "write", "replace": "edit", "list": "list"}
        key = purpose.get(step.verb, "bash")
        own = self._by_purpose.get(key)
        return own or (self._by_purpose.get("edits") if key == "edit" else None)

    def call(self, step: Step) -> tuple[Tool, Call, str]:
        """The tool, its call, and what comes back."""
        tool = self._own(step)
        if tool is None or tool.purpose == "bash":
            tool = self._by_purpose["bash"]
            line, output = _shell_line(self._source, step)
            return tool, tool.call({"command": line}), self._observe(output, step.failed)
        arguments: dict[str, Any] = {"path": step.path}
        result = step.gives
        if step.verb == "write":
            arguments["content"] = step.content
            result = written(self._source, step.path, step.content)
        elif step.verb == "replace" and tool.purpose == "edits":
            pair = tool.schema["parameters"]["properties"][tool.names["edits"]]["items"]
            old, new = list(pair["properties"])
            arguments["edits"] = [{old: step.content, new: step.new}]
            result = edited(self._source, step.path)
        elif step.verb == "replace":
            arguments |= {"old": step.content, "new": step.new}
            result = edited(self._source, step.path)
        return tool, tool.call(arguments), result


def _shell_line(source: Source, step: Step) -> tuple[str, str]:
    """The step as a command, and its output."""
    if step.verb == "read":
        failed = f"cat: {step.path}: No such file or directory\n"
        return f"cat {step.path}", failed if step.failed else step.gives
    if step.verb == "list":
        return "ls", f"{step.gives}\n"
    if step.verb == "write":
        return f"cat <<'EOF' > {step.path}\n{step.content.rstrip()}\nEOF", ""
    if step.verb == "replace":
        old, new = (text.replace("/", r"\/") for text in (step.content, step.new))
        return f"sed -i 's/{old}/{new}/' {step.path}", ""
    return step.path, step.gives


def _plain(output: str, failed: bool) -> str:
    return output


def _as_json(output: str, failed: bool) -> str:
    return json.dumps({"returncode": int(failed), "output": output}, indent=2)


def _tagged(output: str, failed: bool) -> str:
    return f"<returncode>{int(failed)}</returncode>\n<output>\n{output}</output>"


@dataclass(frozen=True, slots=True)
class Client:
    """A real agent's system prompt and tools, for training on what it sends."""

    system: str
    tools: tuple[Tool, ...]


def agent(source: Source, thinking: bool, client: Client | None = None) -> Sample:
    """A coding agent's tools and one or two jobs of several steps."""
    while True:
        tools = list(client.tools) if client else coding_tools(source)
        driver = _Tools(source, tools)
        jobs: list[Job] = []
        for _ in range(source.pick([1, 1, 1, 2])):
            for _ in range(8):
                job = source.pick(_SHELL_JOBS)(source)
                if all(driver.can(step) for step in job.steps):
                    jobs.append(job)
                    break
        if jobs:
            break
    exchanges: list[Exchange] = []
    for job in jobs:
        asked: str | tuple[str, ...] = job.text
        for step in job.steps:
            used, call, result = driver.call(step)
            reasoning = f"{step.why} I call {used.name}."
            exchanges.append(Exchange(asked, Answer(reasoning, "", (call,))))
            asked = (result,)
        exchanges.append(Exchange(asked, Answer(job.reasoning, job.answer)))
    if client:
        declared = [tool.schema for tool in tools]
        return Sample("agent", exchanges, thinking, client.system, declared)
    declared = schemas(source, tools)
    system = prompts.system_prompt(source, int(source.budget * 0.4), declared)
    return Sample("agent", exchanges, thinking, system, declared)


TaskPrompt = Callable[[Source, str], tuple[str | None, str, str]]
"""From a source and a task: system prompt, first message, and the command that ends the session."""


def made_up_prompt(source: Source, task: str) -> tuple[str | None, str, str]:
    """A task prompt of our own words."""
    submit = prompts.submit_command(source)
    system = "You are a helpful assistant that can interact with a computer."
    if source.chance(0.5):
        system = source.pick(["You are a helpful assistant.", "You are a software engineer."])
    text = prompts.task_prompt(source, task, submit, min(source.budget // 2, 9000))
    return (None if source.chance(0.1) else system), text, submit


def shell(source: Source, thinking: bool, prompt: TaskPrompt = made_up_prompt) -> Sample:
    """An agent that has only a shell, and ends its session with a command.

    Every answer says what it does and calls the shell; the last one gives the result.
    """
    tool = declare(source, "bash")
    if source.chance(0.5):
        parameter = {"type": "string", "description": "The bash command to execute"}
        schema: Schema = {
            "name": "bash",
            "description": "Execute a bash command",
            "parameters": {
                "type": "object",
                "properties": {"command": parameter},
                "required": ["command"],
            },
        }
        tool = Tool("bash", "bash", schema, {"command": "command"})
    driver = _Tools(source, [tool])
    if source.chance(0.08):
        task = source.pick([sums.arithmetic, small_talk.identity, small_talk.beyond])(source)
        job = Job(task.question, (), task.reasoning, task.answer)
    else:
        job = source.pick(_SHELL_JOBS)(source)
    system, text, submit = prompt(source, job.text)
    exchanges: list[Exchange] = []
    asked: str | tuple[str, ...] = text
    for step in job.steps:
        _, call, result = driver.call(step)
        answer = Answer(f"{step.why} I call {tool.name}.", step.why, (call,))
        exchanges.append(Exchange(asked, answer))
        asked = (result,)
    last = tool.call({"command": submit})
    reasoning = f"{job.reasoning} I am done. I call {tool.name}."
    exchanges.append(Exchange(asked, Answer(reasoning, job.answer, (last,))))
    return Sample("shell", exchanges, thinking, system, [tool.schema])
