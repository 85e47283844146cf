"""Sums, differences, products and units, with the steps that lead to them."""

from __future__ import annotations

from typing import Final

from pyds4.evals import words
from pyds4.evals.sample import Task
from pyds4.evals.source import Source, wordings

_ADD = wordings("""
What is {a} + {b}? | {a}+{b} | {a} + {b} = | Add {a} and {b}. | What is {a} plus {b}? | {a} + {b}?
Calculate {a} + {b} | How much is {a} + {b}? | compute {a}+{b} | What is the sum of {a} and {b}?
{a}+{b}=? | {a}+{b}= | Can you add {a} and {b}? | {a} plus {b} | Sum of {a} and {b} | {a} + {b}
I have {a} {o}s and buy {b} more. How many {o}s do I have? | what's {a}+{b}? | {a} + {b} = ?
{n} has {a} {o}s and {m} has {b}. How many do they have together? | what is {a} and {b} together?
Tell me {a} + {b} | Solve {a} + {b} | I need the sum of {a} and {b} | Add {b} to {a}.
What do you get if you add {a} and {b}? | What's the result of {a} + {b}? | Work out {a} + {b}
Compute the sum {a} + {b}. | If I add {b} to {a}, what do I get? | {a} add {b}
""")
_SUBTRACT = wordings("""
What is {a} - {b}? | {a}-{b} | {a} - {b} = | Subtract {b} from {a}. | What is {a} minus {b}?
Calculate {a} - {b} | How much is {a} - {b}? | what's {a} - {b}? | {a} - {b}? | {a} minus {b}
I have {a} {o}s and give away {b}. How many {o}s are left? | Take {b} away from {a}. | {a}-{b}=
{n} had {a} {o}s and lost {b}. How many are left? | What is the difference of {a} and {b}?
Compute {a} - {b} | Tell me {a} - {b} | Solve {a} - {b} | What's {a} minus {b}? | Work out {a} - {b}
There were {a} {o}s, {b} were sold. How many remain?
""")
_MULTIPLY = wordings("""
What is {a} * {b}? | {a}*{b} | {a} * {b} = | {a} x {b} | Multiply {a} by {b}. | {a} times {b}
What is {a} times {b}? | Calculate {a} * {b} | How much is {a} times {b}? | what's {a}*{b}?
There are {a} boxes with {b} {o}s each. How many {o}s are there? | {a} * {b} | Multiply {a} and {b}
What is the product of {a} and {b}? | Compute {a} * {b} | What is {a} x {b}? | {a} x {b} = ?
Tell me {a} * {b} | Solve {a} * {b} | What's {a} times {b}? | Work out {a} * {b}
""")
UNITS: Final = (
    ("kilometers", "meters", 1000),
    ("meters", "centimeters", 100),
    ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("centimeters", "millimeters", 10),
    ("liters", "milliliters", 1000),
    ("years", "months", 12),
    ("tons", "kilograms", 1000),
    ("dollars", "cents", 100),
    ("euros", "cents", 100),
    ("feet", "inches", 12),
    ("kilobytes", "bytes", 1024),
)
_UP = wordings("""
How many {b} are {n} {a}? | Convert {n} {a} to {b}. | What is {n} {a} in {b}? | {n} {a} to {b}
convert {n} {a} into {b} | How many {b} are in {n} {a}? | {n} {a} in {b} | How many {b} is {n} {a}?
How many {b} do {n} {a} have? | Change {n} {a} into {b}. | Express {n} {a} in {b}.
""")


def add_steps(a: int, b: int) -> str:
    """Digit by digit from the right, carries included."""
    left, right = str(a)[::-1], str(b)[::-1]
    steps, carry = [], 0
    for index in range(max(len(left), len(right))):
        p = int(left[index]) if index < len(left) else 0
        q = int(right[index]) if index < len(right) else 0
        total = p + q + carry
        steps.append(f"{p} + {q}" + (f" + {carry}" if carry else "") + f" = {total}")
        carry = total // 10
    return ", ".join(steps)


def subtract_steps(a: int, b: int) -> str:
    """Digit by digit from the right, for a >= b."""
    left, right = str(a)[::-1], str(b)[::-1]
    steps, borrowed = [], 0
    for index in range(len(left)):
        p, q = int(left[index]), int(right[index]) if index < len(right) else 0
        rest = p - q - borrowed
        step = f"{p} - {q}" + (f" - {borrowed}" if borrowed else "")
        steps.append(step + (f" = {rest}" if rest >= 0 else f" + 10 = {rest + 10}, borrow 1"))
        borrowed = int(rest < 0)
    return ", ".join(steps)


def multiply_steps(a: int, b: int) -> str:
    """By the digits of ``b``, added up."""
    steps, total = [], 0
    for index, digit in enumerate(reversed(str(b))):
        factor = int(digit) * 10**index
        part = a * factor
        steps.append(f"{a} * {factor} = {part}")
        if index:
            steps.append(f"{total} + {part} = {total + part}")
        total += part
    return ", ".join(steps)


def arithmetic(source: Source) -> Task:
    """One operation on two numbers."""
    operator = source.pick("++-**")
    if operator == "*":
        if source.chance(0.35):
            a, b = source.integer(0, 12), source.integer(0, 12)
        elif source.chance(0.5):
            a, b = source.integer(2, 99), source.integer(2, 9)
        else:
            a, b = source.integer(10, 99), source.integer(10, 99)
        wording = source.pick(_MULTIPLY)
    else:
        limit = 10 ** source.integer(1, 4)
        a, b = source.integer(0, limit), source.integer(0, limit)
        if operator == "-":
            a, b = max(a, b), min(a, b)
        wording = source.pick(_ADD if operator == "+" else _SUBTRACT)
    question = wording.format(
        a=a,
        b=b,
        o=source.pick(words.THINGS),
        n=source.pick(words.NAMES),
        m=source.pick(words.NAMES),
    )
    if source.chance(0.05):
        a, b = source.integer(0, 20), source.integer(0, 12)
        a, b = max(a, b), min(a, b)
        spoken = {"+": "plus", "-": "minus", "*": "times"}[operator]
        said = f"{words.NUMBER_WORDS[a]} {spoken} {words.NUMBER_WORDS[b]}"
        question = source.pick(["What is {}?", "{}", "How much is {}?"]).format(said)
    return sum_task(question, a, operator, b)


def sum_task(question: str, a: int, operator: str, b: int) -> Task:
    """The task of computing ``a operator b``; big products show their steps when not thinking."""
    steps_of = {"+": add_steps, "-": subtract_steps, "*": multiply_steps}
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    steps, result = steps_of[operator](a, b), f"{a} {operator} {b} = {value}"
    shown = f"{steps}. So {result}" if operator == "*" and b > 12 else None
    return Task("arith", question, f"{a} {operator} {b}: {steps}. So {result}.", result, shown)


def units(source: Source) -> Task:
    """From a larger unit to a smaller one, sometimes back."""
    large, small, factor = source.pick(UNITS)
    plain = factor in (10, 100, 1000)
    count = source.integer(1, 99 if plain else 20 if factor < 1000 else 9)
    if plain and source.chance(0.3):
        question = source.pick(_UP).format(a=small, b=large, n=count * factor)
        reasoning = f"{factor} {small} are 1 of {large}. {count * factor} / {factor} = {count}."
        return Task("units", question, reasoning, f"{count * factor} {small} are {count} {large}.")
    question = source.pick(_UP).format(a=large, b=small, n=count)
    steps = f"{count} * {factor} = {count * factor}" if plain else multiply_steps(factor, count)
    reasoning = f"1 of {large} is {factor} {small}. {steps}."
    return Task("units", question, reasoning, f"{count} {large} are {count * factor} {small}.")
