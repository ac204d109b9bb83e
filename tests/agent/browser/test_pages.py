"""What a model does with ordinary pages."""

from base64 import b64decode

import pytest

from agent.browser import tab
from agent.context import RunContext
from agent.tools import browser
from services.sandbox.protocol import Sandbox
from tests.agent.browser.conftest import TOLD, index_of, newest, serve, slow_down, state, tell, use

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("well")]
FORM = """
<h1>Order</h1>
<form onsubmit="document.title = 'sent ' + new FormData(this).get('who') + ' ' + new FormData(this).get('size');
    return false">
  <input name=who placeholder="Your name" value="nobody">
  <select name=size><option value=s>Small<option value=l>Large</select>
  <label><input type=checkbox name=gift> Gift</label>
  <button>Send</button>
</form>
<a href="other.html">Elsewhere</a>
"""


async def test_a_page_is_opened_and_shown_with_its_elements_text_and_picture(ctx: RunContext, sandbox: Sandbox) -> None:
    url = await serve(sandbox, "form", FORM, "Shop")
    told = await use(ctx, browser.browser_navigate_to, url=url)
    assert (told["url"], told["title"], told["element_count"], told["pixels_below"]) == (url, "Shop", 5, 0)
    stored = await newest(ctx)
    assert (str(stored.message_id), stored.is_llm_message) == (told["message_id"], False)
    assert (stored.agent_run_id, stored.type) == (ctx.run.id, "browser_state")
    shown = stored.content
    assert shown["interactive_elements"].splitlines() == [
        '[0]<input name="who" placeholder="Your name" value="nobody"></input>',
        '[1]<select name="size" value="Small"></select>',
        '[2]<input type="checkbox" name="gift"></input>',
        "[3]<button>Send</button>",
        '[4]<a href="other.html">Elsewhere</a>',
    ]
    assert shown["text"].splitlines()[0] == "Order"
    assert b64decode(shown["screenshot_base64"]).startswith(b"\xff\xd8\xff")
    assert [tab["url"] for tab in shown["tabs"]] == [url]


async def test_a_form_is_filled_in_and_sent(ctx: RunContext, sandbox: Sandbox) -> None:
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "form", FORM))
    await use(ctx, browser.browser_input_text, index=0, text="Ann Ülö")
    told = await use(ctx, browser.browser_get_dropdown_options, index=1)
    assert told["message"].splitlines() == ["The options are:", "Small", "Large"]
    await use(ctx, browser.browser_select_dropdown_option, index=1, text="Large")
    await use(ctx, browser.browser_click_element, index=2)
    shown = await state(ctx)
    assert 'value="Ann Ülö"' in shown["interactive_elements"]
    assert 'name="gift" checked' in shown["interactive_elements"]
    told = await use(ctx, browser.browser_click_element, index=3)
    assert told["title"] == "sent Ann Ülö l"


@pytest.mark.slow
async def test_keys_go_where_the_last_call_left_the_focus(ctx: RunContext, sandbox: Sandbox) -> None:
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "form", FORM))
    await use(ctx, browser.browser_input_text, index=0, text="Bo")
    assert (await use(ctx, browser.browser_send_keys, keys="Enter"))["title"] == "sent Bo s"


@pytest.mark.slow
async def test_links_lead_on_and_one_goes_back(
    ctx: RunContext, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, tab, "SETTLE_SECONDS")
    other = await serve(sandbox, "other", "There")
    url = await serve(sandbox, "form", FORM)
    await use(ctx, browser.browser_navigate_to, url=url.removeprefix("http://"))
    assert (await use(ctx, browser.browser_click_element, index=4))["url"] == other
    assert (await use(ctx, browser.browser_go_back))["url"] == url


@pytest.mark.slow
async def test_a_long_page_is_scrolled(ctx: RunContext, sandbox: Sandbox) -> None:
    rows = "".join(f"<p style='height: 100px'>row {number} <button>b{number}</button></p>" for number in range(100))
    told = await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "long", rows))
    assert (told["pixels_above"], told["element_count"]) == (0, 100)
    below = told["pixels_below"]
    told = await use(ctx, browser.browser_scroll_down, amount=500)
    assert (told["pixels_above"], told["pixels_below"]) == (500, below - 500)
    assert (await use(ctx, browser.browser_scroll_up))["pixels_above"] == 0
    told = await use(ctx, browser.browser_scroll_to_text, text="row 90")
    shown = await state(ctx)
    assert "row 90" in shown["text"]
    assert "row 20" not in shown["text"]
    assert index_of(shown, ">b90<") == 90
    told = await use(ctx, browser.browser_scroll_down, amount=90_000)
    assert told["pixels_below"] == 0


async def test_tabs_are_opened_switched_and_closed(ctx: RunContext, sandbox: Sandbox) -> None:
    await serve(sandbox, "second", "There", "Second")
    await use(
        ctx, browser.browser_navigate_to, url=await serve(sandbox, "first", "<a href=second.html target=_blank>go")
    )
    told = await use(ctx, browser.browser_click_element, index=0)
    assert (told["title"], told["tabs"]) == ("Second", 2)
    shown = await state(ctx)
    assert ([tab["title"] for tab in shown["tabs"]], shown["current_tab"]) == (["first", "Second"], 1)
    assert (await use(ctx, browser.browser_switch_tab, page_id=0))["title"] == "first"
    assert (await use(ctx, browser.browser_wait, seconds=0.1))["title"] == "first"
    told = await use(ctx, browser.browser_close_tab, page_id=0)
    assert (told["title"], told["tabs"]) == ("Second", 1)


@pytest.mark.slow
async def test_frames_and_shadow_trees_are_seen_and_acted_in(ctx: RunContext, sandbox: Sandbox) -> None:
    await serve(sandbox, "inner", "<p>in</p><button onclick=\"top.document.title='framed'\">Inside</button>")
    body = """<iframe src=inner.html style="margin: 50px; height: 200px"></iframe><div id=host></div><script>
        const root = host.attachShadow({mode: 'open'}); root.innerHTML = '<button>Shade</button>';
        root.querySelector('button').onclick = () => document.title = 'shaded';</script>"""
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "outer", body))
    shown = await state(ctx)
    assert (await use(ctx, browser.browser_click_element, index=index_of(shown, "Inside")))["title"] == "framed"
    assert (await use(ctx, browser.browser_click_element, index=index_of(shown, "Shade")))["title"] == "shaded"


@pytest.mark.slow
async def test_one_clicks_and_drags_by_the_picture(ctx: RunContext, sandbox: Sandbox) -> None:
    body = """<div style="position: fixed; inset: 0" onmousedown="start = event.clientX"
        onmouseup="document.title = `${start} to ${event.clientX},${event.clientY}`"></div>"""
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "plain", body))
    assert (await use(ctx, browser.browser_click_coordinates, x=30, y=40))["title"] == "30 to 30,40"
    told = await use(ctx, browser.browser_drag_drop, from_x=10, from_y=10, to_x=200, to_y=300)
    assert told["title"] == "10 to 200,300"


@pytest.mark.slow
async def test_an_element_that_moved_is_still_meant(ctx: RunContext, sandbox: Sandbox) -> None:
    moves = "told().then(() => before.innerHTML = '<button>Other</button>'.repeat(3)).then(say)"
    body = f"""<div id=before></div><button onclick="document.title = 'right'">Wanted</button>
        <script>{TOLD}{moves}</script>"""
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, "moving", body))
    index = index_of(await state(ctx), "Wanted")
    assert index == 0
    await tell(sandbox)
    assert (await use(ctx, browser.browser_click_element, index=index))["title"] == "right"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["date", "color", "range"])
async def test_fields_that_are_picked_take_their_value(ctx: RunContext, sandbox: Sandbox, kind: str) -> None:
    body = f"<input type={kind} onchange='document.title = this.value'>"
    values = {"date": "2030-05-06", "color": "#336699", "range": "70"}
    await use(ctx, browser.browser_navigate_to, url=await serve(sandbox, kind, body))
    assert (await use(ctx, browser.browser_input_text, index=0, text=values[kind]))["title"] == values[kind]
