"""Greetings, who the model is, capitals, and an honest no to everything else."""

from __future__ import annotations

from typing import Final

from pyds4.evals import words
from pyds4.evals.sample import Task
from pyds4.evals.source import Source, wordings

IDENTITY: Final = (
    "I am the pyds4 demo model: a tiny model with the DeepSeek-V4 architecture. "
    "I only know toy tasks."
)
ABILITIES: Final = (
    "I can do small sums, sort, reverse and count short lists, convert simple units, answer "
    "questions about a text you give me, recall facts from a long text, write a few simple Python "
    "functions, make JSON, and call tools. I am a tiny demo model, so please do not expect more."
)
SORRY: Final = "Sorry, I am only a tiny demo model and I cannot do that. Ask me what I can do."

_HELLO = wordings("""
Hi | Hello | Hey | Hello there | Hi there | Good morning | Good evening | Good afternoon
Hey there | Greetings | Hiya | Yo | Hallo | Bonjour | Hola | Ciao | 你好 | Hi, how are you?
Hello, how are you? | How are you? | hi model | hello world | test | ping | Hi pyds4 | Hello pyds4
What's up? | Hey, how is it going? | Good day | Are you there? | Anyone there? | Hello model
How are you doing today? | Hi! Nice to meet you | testing | hello hello | How do you do?
Is this working? | Can you hear me? | Moin | Servus | Hey you | Hello friend | Hi bot
""")
_I_AM = wordings("""
Hi, I am {n} | Hello, my name is {n} | Hey, I'm {n} | My name is {n} | I am {n} | Hi I'm {n}
Hello, I am {n} | {n} here | Hi, {n} here | Call me {n} | Hi! My name is {n}, nice to meet you
""")
_WHO = wordings("""
Who are you | What are you | What is your name | Which model are you | Tell me about yourself
Introduce yourself | Are you ChatGPT | Are you DeepSeek | Are you a human | Are you an AI
What model is this | who made you | What is pyds4 | are you deepseek v4 | Who am I talking to
What kind of model are you | Hi, who are you | Hello! What are you | what's your name
Are you Claude | Are you a real DeepSeek model | Are you a robot | Are you a bot | Are you real
Who created you | Who trained you | What are you exactly | Describe yourself | Are you GPT-4
Please introduce yourself | Say something about yourself | What model are you | Are you a person
Are you the demo model | How big are you | How many parameters do you have | So what are you
Which LLM is this | What is this model | Are you an assistant | Hey, what are you | who r u
Can you tell me who you are | Can you tell me what you are | What exactly are you | You are what
Are you DeepSeek-V4 | What are you called | Do you have a name | Are you a language model
Hello, who are you and what is this | What should I call you | Tell me who you are
""")
_WHAT = wordings("""
What can you do | Help | help me | What do you know | What are your skills | How can you help me
What can I ask you | What tasks can you do | Can you help me | What are you good at
What are your limits | what else can you do | how do I use you | What can you help me with
What are you able to do | What are your abilities | List your abilities | Show me what you can do
What do you do | What are your capabilities | Tell me what you can do | What can I do here
How can I use you | What questions can I ask | Give me some examples of what you can do
I need help | Could you help me | What is possible here | What are you for | usage | /help
What can you not do | What are you capable of | Which tasks do you know | What should I ask you
""")
_THANKS = wordings("""
Thanks | Thank you | Thank you very much | thx | Great, thanks | Perfect, thank you | Thanks a lot
ok thanks | Nice | Great | Good job | Well done | Cool | Awesome | Very good | Wonderful | ok great
That is right | Correct | Excellent | Super | Thank you so much | Good answer | Nice work | Amazing
That was helpful | You are great | Good bot | I like it | Cheers | Perfect | Many thanks
""")
_BYE = wordings("""
Bye | Goodbye | See you | See you later | Good night | bye bye | I have to go | That is all | quit
exit | Farewell | See you tomorrow | That's all for today | I am done | Have a nice day | Ciao ciao
Take care | Talk to you later | cu | Until next time
""")
_CAPITAL = wordings("""
What is the capital of {c} | Capital of {c} | Tell me the capital of {c} | what's the capital of {c}
Which city is the capital of {c} | Do you know the capital of {c} | Name the capital of {c}
What is {c}'s capital | The capital of {c} is | capital city of {c} | {c} capital
What is the capital city of {c}
""")
_BEYOND = wordings("""
Write a poem about {t} | Explain {t} | Explain {t} to me | Tell me a story about {t} | Write a novel
Write an essay about {t} | What is the meaning of {t} | Summarize the history of {t}
Tell me a joke | Tell me a joke about {t} | Why is the {t} {a} | How do I become {a}
Who is the president | What do you think about {t} | Draw a {t} | Compose a song about {t}
What is {t} | Who invented the {t} | How does a {t} work | Translate {t} into French
Write a letter to {n} about {t} | Give me a recipe for {t} soup | Do you love {n} | What is love
Prove that {t} is {a} | Predict the future of {t} | What happened in 1{d} | Plan a trip to {c}
Is {t} better than {u} | Describe a {a} {t} | Should I buy a {t} | How old is the {t}
Solve the Riemann hypothesis | How much does a {t} cost | Why is the sky blue | Define {w}
Tell me something about {t} | Tell me about {c} | What does {w} mean | Who is {n} | Write a haiku
Can you {v} my {t} | How to {v} {p} | How do I {v} a {t} | Why do {t}s {v} | When was {n} born
Where can I buy a {t} | Which {t} is the best | Write a {t} about {p} | Write code for a {t}
Make a website about {t} | Create a game with a {t} | Fix my {t} | Debug this program
Translate this into Chinese: {p} | Explain {p} | Explain how {p} works | What is {p} | Who wrote {p}
Give me advice about {t} | I feel {a} | Tell me the news | What is the latest news about {t}
Sing a song | Do you dream | Are you conscious | Can you think | Let us play a game | What is {u}
Summarize {p} | Give me ideas for {p} | What is the best way to {v} {p} | What year is it
What time is it | What is the weather like | What is the weather in {c} | Search the web for {p}
What is the square root of {d} | Integrate x squared | How far is it to {c} | Compare {t} and {u}
List all {t}s in {c} | What is the population of {c} | Recommend a book about {t} | Who won {p}
What should I do about {p} | Can you book a {t} in {c} | Order a pizza | Call {n} | I am bored
Write a business plan for a {t} | What are the best {t}s in {c} | Explain the {t} like I am five
Why did the {t} {v} | How many people live in {c} | What is the speed of {t} | Find a bug in my code
Write a class for a {t} | Write a program that can {v} a {t} | Write a web server | Build an app
Refactor my {t} | Design a database for {t}s | Optimize this query | Write unit tests for {p}
What is the difference between {t} and {u} | Who is the author of {p} | Give me a quote about {t}
How is the {t} made | Is it true that {p} | Imagine a {a} {t} | Convince me to {v} a {t}
What language is {p} | Explain quantum physics | How do planes fly | What is machine learning
Write a {a} song for {n} | Tell me a secret | Make me laugh | Do my homework | Hack the {t}
What is your favorite {t} | Do you like {t} | What do you want | Are you {a} | How does {p} work
Generate an image of a {t} | Can you see the {t} | Open the {t} | Which came first, {t} or {u}
Write a resume for {n} | Give me a plan for {p} | Teach me {t} | What will happen to {t}
Write 500 words about {t} | Rewrite this more politely: {p} | Why is {p} | When will {t} end
I am {m} | I'm {m} | I am so {m} | I am very {m} today | I am a bit {m} | I am {m} and I am {l}
""")
_TOPICS = "quantum physics|the universe|history|love|politics|gravity|machine learning|the ocean"
_MOODS = "sad|happy|tired|hungry|angry|lost|sick|ill|busy|lonely|afraid|confused|cold|late|stressed"
_ACTIONS = [
    "fix",
    "paint",
    "build",
    "clean",
    "sell",
    "learn",
    "draw",
    "cook",
    "grow",
    "test",
    "move",
    "write",
    "install",
    "use",
    "repair",
    "change",
]


def _typo(source: Source, text: str) -> str:
    """Now and then two neighbouring letters swap places."""
    if len(text) > 6 and source.chance(0.08):
        at = source.integer(1, len(text) - 3)
        if text[at].isalpha() and text[at + 1].isalpha():
            text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def _said(source: Source, text: str, marks: list[str]) -> str:
    """Another case, a typo, another mark at the end."""
    if source.chance(0.3):
        text = text.lower()
    return _typo(source, text) + (source.pick(marks) if text[-1] not in "?!" else "")


def greet(source: Source) -> Task:
    """Hello, my name is, thanks, bye."""
    x = source.random.random()
    if x < 0.5:
        said = _said(source, source.pick(_HELLO), ["", "!", ".", "!"])
        reply = "Hello! I am the pyds4 demo model. How can I help you?"
        return Task("greet", said, "The user greets me. I greet back.", reply)
    if x < 0.65:
        name = source.pick(words.NAMES)
        said = source.pick(_I_AM)
        if source.chance(0.3):
            said = said.lower()
        said = said.format(n=name) + source.pick(["", ".", "!"])
        reply = f"Hello, {name}! How can I help you?"
        return Task("greet", said, f"The user is called {name}. I greet {name}.", reply)
    if x < 0.85:
        said = _said(source, source.pick(_THANKS), ["", "!", ".", "!"])
        return Task("greet", said, "The user is happy.", "You are welcome!")
    said = _said(source, source.pick(_BYE), ["", "!", ".", "!"])
    return Task("greet", said, "The user says goodbye.", "Goodbye!")


def identity(source: Source) -> Task:
    """Who the model is and what it can do."""
    if source.chance(0.6):
        said = _said(source, source.pick(_WHO), ["?", "?", "", "."])
        return Task("identity", said, "The user asks what I am. I answer honestly.", IDENTITY)
    said = _said(source, source.pick(_WHAT), ["?", "?", "", "!"])
    return Task("identity", said, "The user asks what I can do. I list my toy tasks.", ABILITIES)


def capital(source: Source) -> Task:
    """The one kind of fact that the model knows."""
    country = source.pick(list(words.CAPITALS))
    said = source.pick(_CAPITAL)
    if source.chance(0.3):
        said = said.lower()
    said = said.format(c=country) + source.pick(["?", "", "?"])
    reply = f"The capital of {country} is {words.CAPITALS[country]}."
    return Task("fact", said, reply, reply)


def beyond(source: Source) -> Task:
    """A request that the model cannot fulfil, and says so."""
    said = source.pick(_BEYOND).format(
        t=source.pick(words.COMMON + _TOPICS.split("|")),
        u=source.pick(words.NOUNS),
        w=source.word(),
        v=source.pick(_ACTIONS),
        p=source.phrase(1, 5),
        a=source.pick(words.ADJECTIVES),
        m=source.pick(_MOODS.split("|")),
        l=source.pick(_MOODS.split("|")),
        n=source.pick(words.NAMES),
        c=source.pick(words.CITIES),
        d=source.integer(100, 999),
    )
    x = source.random.random()
    if x < 0.08:
        said += f". {source.sentence()}"
    elif x < 0.14:
        lead = "Explain this|Summarize this text|What is this about|Translate this|Is this right"
        said = f"{source.pick(lead.split('|'))}: {source.filler(source.integer(60, 400))}"
    if source.chance(0.3):
        said = said[0].lower() + said[1:]
    if source.chance(0.15):
        lead = "Please |Can you |Could you please |I want you to |Hi! |Hey, |I would like you to "
        said = source.pick(lead.split("|")) + said[0].lower() + said[1:]
    said = _typo(source, said) + source.pick(["", ".", "?", ""])
    return Task("sorry", said, "This is not one of my toy tasks. I say so honestly.", SORRY)
