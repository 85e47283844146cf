"""For each purpose of a tool: what a user asks, the right call, what comes back, the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from pyds4.evals import words
from pyds4.evals.source import Source, wordings
from pyds4.evals.toolbox import PURPOSES, Tool, value_of


class Request(NamedTuple):
    """One use of one tool; ``arguments`` under our keys, ``goal`` completes "The user wants"."""

    text: str
    goal: str
    arguments: dict[str, Any]
    result: str
    reasoning: str
    answer: str


_WEATHER = wordings("""
What is the weather in {c}? | How is the weather in {c}? | weather in {c} | Is it cold in {c}?
Tell me the weather in {c}. | What's the weather like in {c}? | What's the weather in {c} today?
Do I need an umbrella in {c}? | Check the weather in {c}. | Weather {c}? | How warm is it in {c}?
Give me the weather for {c} | What is it like outside in {c}? | I am in {c}. How is the weather?
""")
_CONDITIONS = ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy"]


def weather_sentence(degrees: int, unit: str, condition: str, city: str) -> str:
    """The answer to a question about the weather."""
    return f"It is {degrees} °{unit} and {condition} in {city}."


def _weather(source: Source, tool: Tool) -> Request:
    city, degrees = source.pick(words.CITIES), source.integer(-10, 38)
    condition, unit = source.pick(_CONDITIONS), "C"
    text, arguments = source.pick(_WEATHER).format(c=city), {"city": city}
    if "unit" in tool.names and source.chance(0.4):
        arguments["unit"] = source.pick(["celsius", "fahrenheit"])
        unit = arguments["unit"][0].upper()
        text = text.rstrip("?.") + source.pick([" in {}?", "? Use {}."]).format(arguments["unit"])
    result = source.pick(
        [
            json.dumps({"temperature": degrees, "condition": condition}),
            json.dumps({"city": city, "temp": degrees, "unit": unit, "conditions": condition}),
            f"{degrees} °{unit}, {condition}",
            f"{city}: {condition}, {degrees} degrees",
            json.dumps({"location": city, "weather": {"description": condition, "temp": degrees}}),
            f"The weather in {city} is {condition} with {degrees} degrees.",
        ]
    )
    reasoning = f"It is {degrees} degrees and {condition}."
    answer = weather_sentence(degrees, unit, condition, city)
    return Request(text, f"the weather in {city}", arguments, result, reasoning, answer)


def _calculator(source: Source, tool: Tool) -> Request:
    a, b, c = source.integer(2, 9999), source.integer(2, 99), source.integer(2, 99)
    forms = {
        f"{a} + {b}": a + b,
        f"{a} - {b}": a - b,
        f"{a} * {b}": a * b,
        f"{a} / {b}": a / b,
        f"({b} + {c}) * {c}": (b + c) * c,
        f"{b} ** 2": b**2,
        f"{a}*{b}": a * b,
        f"{a}/{c}": a / c,
    }
    expression, value = source.pick(list(forms.items()))
    value = round(value, 4)
    ask = wordings("""
    What is {e}? Use the {n}. | Use the {n} to compute {e} | Calculate {e} with the {n} tool.
    Please compute {e} with your tool. | Use a tool: what is {e}? | {e} (use {n})
    """)
    text = source.pick(ask).format(e=expression, n=tool.name)
    results = [str(value), json.dumps({"result": value}), f"{expression} = {value}"]
    says = f"The result is {value}."
    goal = f"the value of {expression}"
    return Request(text, goal, {"expression": expression}, source.pick(results), says, says)


def _search(source: Source, tool: Tool) -> Request:
    query = source.phrase(2, 5)
    arguments: dict[str, Any] = {"query": query}
    ask = wordings("""
    Search the web for {q} | search for {q} | Find information about {q} on the web.
    Look up {q} on the internet. | Google {q} | Please search the web for {q}.
    """)
    text = source.pick(ask).format(q=query)
    if "count" in tool.names and source.chance(0.5):
        arguments["count"] = limit = source.integer(1, 10)
        tail = source.pick([". At most {} results.", ", {} results please"])
        text = text.rstrip(".") + tail.format(limit)
    titles = [source.phrase(2, 5).title() for _ in range(source.integer(1, 3))]
    lines = [
        f"{index}. {title} - https://{source.nonsense()}.com/{source.identifier()}"
        + (f"\n{source.sentence()}" if source.chance(0.5) else "")
        for index, title in enumerate(titles, 1)
    ]
    result = source.pick(["\n", "\n\n"]).join(lines)
    reasoning, answer = f"The first result is {titles[0]}.", f"The first result is: {titles[0]}"
    return Request(text, f"a web search for {query}", arguments, result, reasoning, answer)


def _time(source: Source, tool: Tool) -> Request:
    city = source.pick(words.CITIES)
    time = f"{source.integer(0, 23):02d}:{source.integer(0, 59):02d}"
    ask = wordings("""
    What time is it in {c}? | What is the time in {c}? | Current time in {c} | Time in {c}?
    Tell me the time in {c}. | How late is it in {c}?
    """)
    result = source.pick([time, json.dumps({"time": time}), f"It is {time} in {city}."])
    answer = f"It is {time} in {city}."
    text = source.pick(ask).format(c=city)
    return Request(text, f"the time in {city}", {"city": city}, result, f"It is {time}.", answer)


def _translate(source: Source, tool: Tool) -> Request:
    said = source.phrase(1, 5)
    language = source.pick(
        ["German", "French", "Spanish", "Italian", "Polish", "Dutch", "Swedish", "Greek"]
    )
    ask = wordings("""
    Translate {s} into {l} | Translate "{s}" to {l}. | What is "{s}" in {l}? | Say {s} in {l}
    How do you say {s} in {l}?
    """)
    translated = " ".join(source.nonsense() for _ in said.split())
    result = source.pick([translated, json.dumps({"translation": translated})])
    return Request(
        source.pick(ask).format(s=said, l=language),
        f"a translation into {language}",
        {"text": said, "language": language},
        result,
        f"The translation is {translated}.",
        f"In {language}: {translated}",
    )


def _email(source: Source, tool: Tool) -> Request:
    to = source.pick(words.NAMES)
    if source.chance(0.5):
        to = f"{to.lower()}@{source.nonsense()}.com"
    subject = source.phrase(1, 3)
    body = source.sentence() if source.chance(0.5) else source.phrase(2, 6)
    ask = wordings("""
    Send an email to {n} with the subject {s} and the text {b} | Email {n}. Subject: {s}. Text: {b}
    Write a mail to {n}, subject "{s}", body "{b}"
    """)
    result = source.pick(["sent", "OK", json.dumps({"status": "sent"}), "Message sent."])
    return Request(
        source.pick(ask).format(n=to, s=subject, b=body),
        f"to send a message to {to}",
        {"to": to, "subject": subject, "body": body},
        result,
        "The message is sent.",
        f"I sent the message to {to}.",
    )


def _event(source: Source, tool: Tool) -> Request:
    title, date = source.phrase(1, 3), source.date()
    arguments: dict[str, Any] = {"title": title, "date": date}
    ask = wordings("""
    Create an event {s} on {d} | Add {s} to my calendar on {d} | Schedule {s} for {d}
    """)
    text = source.pick(ask).format(s=title, d=date)
    if "time" in tool.names and source.chance(0.5):
        arguments["time"] = f"{source.integer(0, 23):02d}:{source.pick(['00', '15', '30', '45'])}"
        text += f" at {arguments['time']}"
    if "minutes" in tool.names and source.chance(0.5):
        arguments["minutes"] = source.pick([15, 30, 45, 60, 90, 120])
        text += f" for {arguments['minutes']} minutes"
    result = source.pick(["OK", json.dumps({"id": source.integer(1, 999)}), "Event created."])
    answer = f"I created the event {title} on {date}."
    goal = f"a calendar event on {date}"
    return Request(text, goal, arguments, result, "The event exists now.", answer)


def _timer(source: Source, tool: Tool) -> Request:
    minutes = source.integer(1, 90)
    arguments: dict[str, Any] = {"minutes": minutes}
    ask = wordings("""
    Set a timer for {m} minutes | Start a {m} minute timer | timer {m} minutes
    Remind me in {m} minutes
    """)
    text = source.pick(ask).format(m=minutes)
    if "label" in tool.names and source.chance(0.5):
        arguments["label"] = source.word()
        text += f" called {arguments['label']}"
    result = source.pick(["OK", "started", json.dumps({"ok": True})])
    answer = f"The timer is set for {minutes} minutes."
    goal = f"a timer for {minutes} minutes"
    return Request(text, goal, arguments, result, "The timer runs.", answer)


def _stock(source: Source, tool: Tool) -> Request:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    symbol = "".join(source.pick(letters) for _ in range(source.integer(2, 4)))
    price = round(source.random.random() * 500 + 1, 2)
    ask = wordings("""
    What is the stock price of {s}? | Price of {s} | How much is {s} stock? | Quote for {s}
    Get the stock price for {s}.
    """)
    full = {"symbol": symbol, "price": price, "currency": "USD"}
    result = source.pick([str(price), json.dumps({"price": price}), json.dumps(full)])
    return Request(
        source.pick(ask).format(s=symbol),
        f"the price of {symbol}",
        {"symbol": symbol},
        result,
        f"The price is {price}.",
        f"The price of {symbol} is {price}.",
    )


def _convert(source: Source, tool: Tool) -> Request:
    amount = source.pick([source.integer(1, 999), round(source.random.random() * 100, 2)])
    old, new = source.some(["EUR", "USD", "GBP", "JPY", "CHF", "SEK", "PLN", "INR"], 2)
    value = round(amount * (source.random.random() + 0.5), 2)
    ask = ["Convert {x} {a} to {b}", "How much is {x} {a} in {b}?", "What are {x} {a} in {b}?"]
    return Request(
        source.pick(ask).format(x=amount, a=old, b=new),
        f"to convert {old} to {new}",
        {"amount": amount, "source": old, "target": new},
        source.pick([str(value), json.dumps({"result": value})]),
        f"The result is {value} {new}.",
        f"{amount} {old} are {value} {new}.",
    )


def _light(source: Source, tool: Tool) -> Request:
    room, on = source.pick(words.PLACES[:9]), source.chance(0.5)
    state = "on" if on else "off"
    ask = wordings("""
    Switch {w} the light in the {r} | Turn {w} the {r} light | Turn the light in the {r} {w}.
    Light {w} in the {r} please
    """)
    result = source.pick(["OK", "done", json.dumps({"ok": True})])
    answer = f"The light in the {room} is {state} now."
    text = source.pick(ask).format(w=state, r=room)
    goal = f"the light in the {room} {state}"
    return Request(text, goal, {"room": room, "on": on}, result, "It worked.", answer)


def _todo(source: Source, tool: Tool) -> Request:
    item = source.phrase(1, 4)
    arguments = {"item": item}
    ask = wordings("""
    Add {s} to my todo list | Put {s} on the todo list. | New task: {s} | Remember to do: {s}
    """)
    text = source.pick(ask).format(s=item)
    if "priority" in tool.names and source.chance(0.5):
        arguments["priority"] = source.pick(["low", "medium", "high"])
        text = text.rstrip(".") + f" with {arguments['priority']} priority"
    result = source.pick(["OK", "added", json.dumps({"id": source.integer(1, 99)})])
    answer = f"I added {item} to the list."
    return Request(text, "a new todo item", arguments, result, "The item is on the list.", answer)


def _user(source: Source, tool: Tool) -> Request:
    user, name = source.integer(1, 9999), source.pick(words.NAMES)
    ask = wordings("""
    Who is user {i}? | Look up the user with id {i} | Get user {i} | What is the name of user {i}?
    """)
    records: list[dict[str, Any]] = [
        {"id": user, "name": name, "city": source.pick(words.CITIES)},
        {"name": name},
        {"name": name, "age": source.integer(18, 90)},
    ]
    return Request(
        source.pick(ask).format(i=user),
        f"the user {user}",
        {"id": user},
        json.dumps(source.pick(records)),
        f"The name is {name}.",
        f"User {user} is {name}.",
    )


def _order(source: Source, tool: Tool) -> Request:
    who = source.pick(words.NAMES)
    items = [
        {"name": source.pick(words.THINGS), "quantity": source.integer(1, 20)}
        for _ in range(source.integer(1, 3))
    ]
    listed = " and ".join(f"{item['quantity']} {item['name']}" for item in items)
    ask = ["Order {x} for {n}", "Place an order for {n}: {x}", "{n} wants to order {x}."]
    return Request(
        source.pick(ask).format(x=listed, n=who),
        f"an order for {who}",
        {"customer": who, "items": items},
        source.pick(["OK", json.dumps({"order_id": source.integer(1, 999)})]),
        "The order is placed.",
        f"I placed the order for {who}.",
    )


def _tags(source: Source, tool: Tool) -> Request:
    note, tags = source.phrase(1, 2), [source.word() for _ in range(source.integer(1, 4))]
    listed = ", ".join(tags)
    ask = ["Tag the note {n} with {x}", "Add the tags {x} to the note {n}"]
    return Request(
        source.pick(ask).format(n=note, x=listed),
        f"tags for the note {note}",
        {"note": note, "tags": tags},
        source.pick(["OK", "done"]),
        "The tags are set.",
        f"I tagged {note} with {listed}.",
    )


def _multiply(source: Source, tool: Tool) -> Request:
    x, y = source.integer(2, 9999), source.integer(2, 9999)
    ask = wordings("""
    Multiply {x} by {y} with your tool. | Use {n} for {x} and {y} | Use the tool: {x} times {y}
    What is {x} * {y}? Use {n}. | Use your tool to multiply {x} and {y}.
    """)
    says = f"The result is {x * y}."
    result = source.pick([str(x * y), json.dumps({"result": x * y})])
    text = source.pick(ask).format(x=x, y=y, n=tool.name)
    return Request(text, f"the product of {x} and {y}", {"x": x, "y": y}, result, says, says)


def _music(source: Source, tool: Tool) -> Request:
    song = source.phrase(1, 4)
    ask = ["Play {s}", "Play the song {s}", "I want to hear {s}", 'Put on the song "{s}"']
    return Request(
        source.pick(ask).format(s=song),
        f"to hear {song}",
        {"song": song},
        source.pick(["playing", "OK"]),
        "The song plays.",
        f"Now playing {song}.",
    )


def _random(source: Source, tool: Tool) -> Request:
    properties = tool.schema["parameters"]["properties"]
    arguments = {key: value_of(source, entry["type"]) for key, entry in properties.items()}

    def shown(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    joint, sign = source.pick([(", ", "="), (" and ", " "), (", ", ": ")])
    listed = joint.join(f"{key}{sign}{shown(value)}" for key, value in arguments.items())
    asks = [f"Use {tool.name}", f"Call {tool.name}", f"Run {tool.name}", f"Please use {tool.name}"]
    text = source.pick([*asks, f"Call the tool {tool.name}"])
    if arguments:
        text += source.pick([" with ", " with ", ": "]) + listed
    result = source.pick(
        [
            source.code(),
            source.phrase(1, 4),
            json.dumps({source.identifier(): source.integer(0, 999)}),
            "OK",
            source.sentence(),
        ]
    )
    goal = f"to use {tool.name}"
    return Request(text, goal, arguments, result, "The tool has answered.", f"Result: {result}")


_MAKERS: Final[dict[str, Callable[[Source, Tool], Request]]] = {
    "weather": _weather,
    "calculator": _calculator,
    "search": _search,
    "time": _time,
    "translate": _translate,
    "email": _email,
    "event": _event,
    "timer": _timer,
    "stock": _stock,
    "convert": _convert,
    "light": _light,
    "todo": _todo,
    "user": _user,
    "order": _order,
    "tags": _tags,
    "multiply": _multiply,
    "music": _music,
    "random": _random,
}
PLAIN: Final = tuple(key for key in _MAKERS if key in PURPOSES)
"""Purposes that have nothing to do with files."""


def request(source: Source, tool: Tool) -> Request:
    """A request that ``tool``, which is not about files, answers in one call."""
    return _MAKERS[tool.purpose](source, tool)
