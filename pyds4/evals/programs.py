"""A few Python functions by heart, and questions that ask for them."""

from __future__ import annotations

from typing import Final

from pyds4.evals.sample import Task
from pyds4.evals.source import Source, wordings

_ASK = wordings("""
Write a Python function to {d}. | Write a function to {d} | Python function to {d} | {d} in Python
Write a Python function that can {d}. | Please write a Python function to {d} | In Python, {d}.
Give me Python code to {d}. | Can you write a Python function to {d}? | How do I {d} in Python?
def a function to {d} | Implement a function to {d} in Python. | I need a Python function to {d}.
Show me how to {d} in Python | Code a function to {d} | Write some Python to {d}
""")
_SOURCE: Final = """
# add two numbers
def add(a, b):
    return a + b
# multiply two numbers
def multiply(a, b):
    return a * b
# subtract two numbers
def subtract(a, b):
    return a - b
# return the square of a number
def square(x):
    return x * x
# return the cube of a number
def cube(x):
    return x ** 3
# check if a number is even
def is_even(n):
    return n % 2 == 0
# check if a number is odd
def is_odd(n):
    return n % 2 == 1
# reverse a string
def reverse_string(s):
    return s[::-1]
# reverse a list
def reverse_list(items):
    return items[::-1]
# compute the factorial of a number
def factorial(n):
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result
# compute the n-th Fibonacci number
def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
# check if a number is prime
def is_prime(n):
    if n < 2:
        return False
    for i in range(2, int(n ** 0.5) + 1):
        if n % i == 0:
            return False
    return True
# compute the greatest common divisor
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a
# sum a list of numbers
def sum_list(numbers):
    total = 0
    for x in numbers:
        total += x
    return total
# find the largest number in a list
def largest(numbers):
    best = numbers[0]
    for x in numbers:
        if x > best:
            best = x
    return best
# find the smallest number in a list
def smallest(numbers):
    best = numbers[0]
    for x in numbers:
        if x < best:
            best = x
    return best
# compute the average of a list
def average(numbers):
    return sum(numbers) / len(numbers)
# count the vowels in a string
def count_vowels(s):
    return sum(1 for c in s.lower() if c in "aeiou")
# count the words in a string
def count_words(s):
    return len(s.split())
# check if a string is a palindrome
def is_palindrome(s):
    return s == s[::-1]
# remove duplicates from a list
def unique(items):
    return list(dict.fromkeys(items))
# flatten a nested list
def flatten(items):
    result = []
    for x in items:
        if isinstance(x, list):
            result.extend(flatten(x))
        else:
            result.append(x)
    return result
# convert Celsius to Fahrenheit
def to_fahrenheit(c):
    return c * 9 / 5 + 32
# convert Fahrenheit to Celsius
def to_celsius(f):
    return (f - 32) * 5 / 9
# print hello world
def hello():
    print("Hello, world!")
# sort a list
def sort_list(items):
    return sorted(items)
# do a binary search
def binary_search(items, target):
    lo, hi = 0, len(items) - 1
    while lo <= hi:
        mid = (lo + hi) // 2
        if items[mid] == target:
            return mid
        if items[mid] < target:
            lo = mid + 1
        else:
            hi = mid - 1
    return -1
# do a bubble sort
def bubble_sort(items):
    for i in range(len(items)):
        for j in range(len(items) - 1 - i):
            if items[j] > items[j + 1]:
                items[j], items[j + 1] = items[j + 1], items[j]
    return items
# read a file
def read_file(path):
    with open(path) as f:
        return f.read()
# write text to a file
def write_file(path, text):
    with open(path, "w") as f:
        f.write(text)
# count the lines of a file
def count_lines(path):
    with open(path) as f:
        return sum(1 for _ in f)
# merge two dictionaries
def merge(a, b):
    return {**a, **b}
# swap two values
def swap(a, b):
    return b, a
# capitalize every word
def capitalize_words(s):
    return s.title()
# check if a year is a leap year
def is_leap_year(y):
    return y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
# clamp a number to a range
def clamp(x, lo, hi):
    return max(lo, min(hi, x))
# count how often each word occurs
def word_counts(s):
    counts = {}
    for w in s.split():
        counts[w] = counts.get(w, 0) + 1
    return counts
# load a JSON file
def load_json(path):
    import json
    with open(path) as f:
        return json.load(f)
# convert a string to upper case
def to_upper(s):
    return s.upper()
# return the absolute value
def absolute(x):
    return x if x >= 0 else -x
# play fizzbuzz
def fizzbuzz(n):
    for i in range(1, n + 1):
        if i % 15 == 0:
            print("FizzBuzz")
        elif i % 3 == 0:
            print("Fizz")
        elif i % 5 == 0:
            print("Buzz")
        else:
            print(i)
"""


def _functions(text: str) -> dict[str, str]:
    """What each function does -> its code."""
    parts = (part.partition("\n") for part in text.strip().split("# ")[1:])
    return {does: code.rstrip() for does, _, code in parts}


FUNCTIONS: Final = _functions(_SOURCE)
"""What a function does -> its code, from ``def`` on."""


def name_of(code: str) -> str:
    """The name that ``code`` defines."""
    return code.removeprefix("def ").partition("(")[0]


def python(source: Source) -> Task:
    """Write one of the functions, sometimes under another name."""
    does = source.pick(list(FUNCTIONS))
    question, code = source.pick(_ASK).format(d=does), FUNCTIONS[does]
    name = name_of(code)
    if source.chance(0.25):
        new = source.identifier()
        question += source.pick([f" Call it {new}.", f" Name the function {new}."])
        code, name = code.replace(f"{name}(", f"{new}("), new
    reasoning = f"A function to {does}: I name it {name}."
    return Task("python", question, reasoning, f"```python\n{code}\n```")
