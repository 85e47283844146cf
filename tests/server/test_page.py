"""The chat page in a real browser. Skipped where there is no Chromium or no Playwright."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
from protocol_agents import READ, as_function
from pyds4_server import Settings, create_app
from pyds4_server.app import provide
from pyds4_server.service import Service
from pyds4_server.serving import listening
from server_fakes import FakeEngine
from server_harness import Served, serving

import pyds4
from models import DEMO
from pyds4.errors import BackendError

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="read">\n'
    '<｜DSML｜parameter name="path" string="true">config.ini</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
TOOLS = '[{"type":"function","function":{"name":"read","parameters":{"type":"object"}}}]'
SLOW = " ".join(f"word{i}" for i in range(2000))


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as p:
        launched = await p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        await launched.close()


class Page:
    """The page as a user has it: what is shown, and a keyboard."""

    def __init__(self, page: Any, served: Served) -> None:
        self.page = page
        self.served = served
        self.problems: list[str] = []
        self.outside: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.served.url):
            self.outside.append(request.url)

    async def say(self, text: str) -> None:
        await self.page.keyboard.type(text)
        await self.page.keyboard.press("Enter")

    async def sees(self, text: str) -> None:
        await self.page.get_by_text(text).last.wait_for(timeout=5000)

    async def log(self) -> str:
        shown: str = await self.page.inner_text("#log")
        return shown


async def opened(browser: Any, served: Served) -> Page:
    page = Page(await browser.new_page(), served)
    await page.page.goto(served.url)
    await page.page.wait_for_function("document.title === 'fake-v4'")
    return page


async def test_chat_by_keyboard_survives_a_reload(browser: Any) -> None:
    answers = ["First <b>answer</b>.\n```py\nprint(1)\n```", "Second answer."]
    async with serving(FakeEngine(answers)) as served:
        page = await opened(browser, served)
        await page.say("Hello")
        await page.sees("First <b>answer</b>.")
        await page.sees("print(1)")
        await page.sees("tokens cached")
        await page.page.reload()
        await page.sees("print(1)")
        await page.say("Again")
        await page.sees("Second answer.")
        assert "<｜User｜>Hello<｜Assistant｜></think>First <b>" in served.engine.prompts[1]
        assert page.problems == page.outside == []


async def test_reasoning_is_folded_and_calls_take_results(browser: Any) -> None:
    answers = ["I look it up.</think>" + CALL, "Now I know.</think>It is 8471."]
    async with serving(FakeEngine(answers)) as served:
        page = await opened(browser, served)
        await page.page.click("#open-settings")
        await page.page.select_option("#effort", "high")
        await page.page.fill("#tools", TOOLS)
        await page.page.click("#settings button.main")
        await page.page.focus("#prompt")
        await page.say("Which port?")
        await page.sees("calls read")
        assert not await page.page.locator("details > div").first.is_visible()
        assert '{"path": "config.ini"}' in await page.log()
        await page.page.keyboard.type("port = 8471")
        await page.page.click("text=Give result")
        await page.sees("It is 8471.")
        assert "<tool_result>port = 8471</tool_result>" in served.engine.prompts[1]
        assert page.problems == []


@pytest.mark.parametrize("by", ["button", "key"])
async def test_stop_ends_the_answer_and_the_work(browser: Any, by: str) -> None:
    async with serving(FakeEngine([SLOW], step_s=0.005, context=10_000)) as served:
        page = await opened(browser, served)
        await page.say("Go on and on")
        await page.sees("word5")
        if by == "button":
            await page.page.click("#stop")
        else:
            await page.page.keyboard.press("Escape")
        await page.sees("stopped")
        async with asyncio.timeout(60):
            while served.active:
                await asyncio.sleep(0.01)
        assert len(await page.log()) < len(SLOW) / 2


async def test_progress_and_errors_are_shown(browser: Any) -> None:
    engine = FakeEngine(step_s=0.05)
    async with serving(engine, prefill_idle_chunk_tokens=32) as served:
        page = await opened(browser, served)
        await page.page.fill("#prompt", "word " * 300)
        await page.page.keyboard.press("Enter")
        await page.sees("reading the prompt")
        await page.sees("Hello!")
        engine.fail_step = BackendError("the device is gone")
        await page.say("And now?")
        await page.sees("the device is gone")
        await page.say("Still there?")
        await page.sees("Hello!")
        assert page.problems == []


async def test_documentation_lists_the_endpoints(browser: Any) -> None:
    async with serving() as served:
        page = Page(await browser.new_page(), served)
        await page.page.goto(f"{served.url}/docs")
        await page.page.click("text=POST /v1/messages")
        await page.page.locator("details[open]").get_by_text("max_tokens").wait_for(timeout=5000)
        assert page.problems == page.outside == []


async def test_the_page_waits_for_the_model(browser: Any) -> None:
    settings = Settings(port=0, disk_cache=False)
    app = create_app(settings)
    async with listening(settings, app) as url:
        page = await browser.new_page()
        await page.goto(url)
        await page.get_by_text("loading the model").wait_for()
        provide(app, Service(settings, FakeEngine()))
        await page.get_by_role("heading", name="fake-v4").wait_for()
        assert await page.title() == "fake-v4"


async def test_the_demo_model_answers_what_newcomers_ask(browser: Any) -> None:
    with pyds4.Engine(DEMO) as engine:
        async with serving(engine) as served:
            page = Page(await browser.new_page(), served)
            await page.page.goto(served.url)
            await page.page.wait_for_function("document.title.includes('demo')")
            await page.page.click("#open-settings")
            await page.page.fill("#temperature", "0")
            await page.page.fill("#tools", json.dumps([as_function(READ)]))
            await page.page.click("#settings button.main")
            await page.page.focus("#prompt")
            await page.say("What are you?")
            await page.sees("I am the pyds4 demo model")
            await page.say("Read config.ini and tell me the port")
            await page.sees("calls read")
            await page.sees('"config.ini"')
            await page.page.locator("text=Give result").wait_for()
            await page.page.keyboard.type("port = 8471")
            await page.page.click("text=Give result")
            await page.sees("8471.")
            await page.page.click("#open-settings")
            await page.page.select_option("#effort", "high")
            await page.page.click("#settings button.main")
            await page.page.focus("#prompt")
            await page.say("What is 47 + 85?")
            await page.sees("47 + 85 = 132")
            assert page.problems == page.outside == []
