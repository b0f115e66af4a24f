"""Tries the page of `polylora serve` in a real browser: Chromium, driven by Selenium.

    pip install selenium        # and Chromium with its driver, of the system
    polylora demo --write valley
    cp -r valley/shout 'valley/<img src=x onerror=alert(1)>'
    polylora serve valley/valley-q4_k_m.gguf --adapter-dir valley --port 8080
    polylora serve valley/valley-q4_k_m.gguf --adapter-dir valley --port 8081 --api-keys keys.toml
    python tools/serve/page_test.py http://localhost:8080 \\
        --keyed http://localhost:8081 --admin-key ADMIN --user-key USER --screenshots shots

In keys.toml the admin's key may use every adapter, the user's `shout` alone. Without `--keyed` the
tests of keys are left out.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import time

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

MARKUP = "<img src=x onerror=alert(1)>"
PROMPT = "Tell me a story about a frog and a boat."
CONTRAST = 4.5  # WCAG 2.2, AA, for text of any size.
EDGE_CONTRAST = 3.0  # The same, for the edges of fields.

# Runs before the page: what the tests look at, and a stand-in for some of the server's answers.
# Short streams come in pieces of three bytes, so that every event, line end and letter is cut.
STAND_IN = """
window.all = (selector) => [...document.querySelectorAll(selector)];
window.violations = [];
document.addEventListener('securitypolicyviolation', (e) => violations.push(e.blockedURI));
const [real, faults] = [window.fetch, FAULTS];
window.asked = [];
window.fetch = async (path, options = {}) => {
  window.asked.push([path, options.body ? JSON.parse(options.body) : null]);
  const fault = faults[path];
  if (!fault) return real(path, options);
  const bytes = new TextEncoder().encode(fault.body);
  const pieces = [];
  const size = bytes.length < 4096 ? 3 : 65536;
  for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
  const body = new ReadableStream({
    pull(controller) {
      if (pieces.length) controller.enqueue(pieces.shift());
      else controller.close();
    },
  });
  return new Response(body, { status: fault.status ?? 200, headers: fault.headers ?? {} });
};
"""

# Text whose contrast with what is behind it is too small, and fields whose edge is too faint.
LOW_CONTRAST = """
const parse = (color) => {
  const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
  return { rgb: [r, g, b], a };
};
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const { rgb, a } = parse(getComputedStyle(node).backgroundColor);
    if (a === 1) return rgb;
    if (a > 0) throw new Error('half-transparent ground');
  }
};
const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = (rgb) => {
  const [r, g, b] = rgb.map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (x, y) => {
  const [high, low] = [light(x), light(y)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const found = [];
const note = (what, node, color, ground, least) => {
  const value = contrast(parse(color).rgb, ground);
  if (value < least) found.push(`${what} of ${node.outerHTML.slice(0, 60)}: ${value.toFixed(2)}`);
};
let seen = 0;
for (const node of document.body.querySelectorAll('*')) {
  if (!node.checkVisibility({ visibilityProperty: true })) continue;
  const style = getComputedStyle(node);
  const hasText = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const isField = node.matches('input, textarea');
  if (hasText || isField) note('text', node, style.color, behind(node), arguments[0]);
  const faint = getComputedStyle(node, '::placeholder').color;
  if (node.placeholder) note('placeholder', node, faint, behind(node), arguments[0]);
  if (isField) note('edge', node, style.borderTopColor, behind(node.parentElement), arguments[1]);
  seen += hasText || isField;
}
return [seen, found];
"""


class Page:
    """A browser with the page, and what the tests ask of it."""

    def __init__(self, url, faults=None, dark=False, width=1280, height=900):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        # Containers have no user namespaces for Chromium's sandbox; it visits this server only.
        for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.width = width
        self.size(height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])
        stand_in = STAND_IN.replace("FAULTS", json.dumps(faults or {}))
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=stand_in)
        self.driver.get(url)

    def size(self, height):
        is_phone = self.width < 600
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=self.width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def throttle(self, bytes_per_second):
        self.cdp("Network.enable")
        self.cdp(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=bytes_per_second,
            uploadThroughput=-1,
        )

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, script, *arguments, seconds=30):
        """Waits until the script returns something true, and returns it."""
        deadline = time.monotonic() + seconds
        while not (value := self.js(script, *arguments)):
            assert time.monotonic() < deadline, f"waited in vain for: {script} {arguments}"
            time.sleep(0.01)
        return value

    def press(self, *keys):
        """Keys go to what has the focus, as from a keyboard."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier, key):
        chain = webdriver.ActionChains(self.driver)
        chain.key_down(modifier).send_keys(key).key_up(modifier).perform()

    def tab_to(self, script, backwards=False):
        """Presses Tab until the focused element, `e`, is as the script says; sees its outline."""
        for _ in range(60):
            if self.js(f"const e = document.activeElement; return {script}"):
                outline = self.js("return getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"no visible focus at {script}"
                return
            self.chord(Keys.SHIFT, Keys.TAB) if backwards else self.press(Keys.TAB)
        raise AssertionError(f"Tab does not reach {script}")

    def names(self):
        return self.js("return all('#rows label').map((label) => label.textContent)")

    def text(self, id):
        return self.js("return document.getElementById(arguments[0]).textContent", id)

    def shows(self, selector):
        """Of all elements that a selector finds, whether they are to be seen."""
        return self.js("return all(arguments[0]).map((e) => e.checkVisibility())", selector)

    def wait_for_rows(self):
        self.wait("return document.querySelector('#rows tr') !== null")

    def column(self, label):
        """The texts of one column, in the order of the rows."""
        script = """
            const at = all('#columns th').findIndex((th) => th.textContent === arguments[0]);
            return all('#rows tr').map((tr) => tr.cells[at].textContent);"""
        return self.js(script, label)

    def tick(self, name):
        self.js("all('#rows label').find((l) => l.textContent === arguments[0]).click()", name)

    def ticked(self):
        return self.js("return all('#rows :checked').map((box) => box.parentElement.textContent)")

    def answers(self):
        """Of each answer: its title, its text, its error and what is told of it."""
        script = """
            return Object.fromEntries(all('article').map((a) => [
              a.querySelector('h3').textContent,
              Object.fromEntries(['text', 'error', 'tokens', 'rate', 'first', 'finish'].map(
                (part) => [part, a.querySelector('.' + part).textContent]))]));"""
        return self.js(script)

    def ask(self, prompt):
        self.driver.find_element(By.ID, "prompt").send_keys(prompt)
        self.chord(Keys.CONTROL, Keys.ENTER)

    def questions(self):
        """The bodies of the requests for answers that were sent."""
        script = "return asked.map(([, body]) => body).filter((body) => body !== null)"
        return self.js(script)

    def wait_for_end(self):
        self.wait("return all('article').length > 0 && all('[aria-busy=true]').length === 0")
        return self.answers()

    def check_clean(self, allowed=""):
        """Nothing is in the console, nothing broke the policy, no markup came to life."""
        told = [e["message"] for e in self.driver.get_log("browser")]
        told = [message for message in told if not (allowed and allowed in message)]
        assert not told, told
        assert self.js("return violations") == [], self.js("return violations")
        assert self.js("return document.images.length") == 0

    def check_access(self):
        """Names of all fields and buttons, contrast, and no scrolling to the side."""
        tree = self.cdp("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "checkbox", "searchbox", "spinbutton", "textbox", "meter", "table"}
        seen = 0
        for node in tree:
            role = node.get("role", {}).get("value")
            if node["ignored"] or role not in roles:
                continue
            seen += 1
            name = node.get("name", {}).get("value", "").strip()
            assert name, f"a {role} has no name: {node}"
        # A placeholder is a name too, but one that goes away.
        nameless = self.js("""
            const hasLabel = (e) => e.labels.length > 0 || e.hasAttribute('aria-labelledby');
            return all('input, textarea, meter').filter((e) => !hasLabel(e));""")
        assert nameless == [], nameless
        seen_texts, found = self.js(LOW_CONTRAST, CONTRAST, EDGE_CONTRAST)
        assert seen >= 2 and seen_texts > 5 and not found, (seen, seen_texts, found)
        wide = self.js("return document.documentElement.scrollWidth > innerWidth")
        assert not wide, "it scrolls sideways"
        ids = self.js("return all('[id]').map((e) => e.id)")
        assert len(ids) == len(set(ids)), ids

    def screenshot(self, folder, name):
        if folder:
            self.js("document.activeElement.blur(); scrollTo(0, 0)")
            self.size(self.js("return document.documentElement.scrollHeight"))
            self.driver.save_screenshot(str(pathlib.Path(folder, f"{name}.png")))


@contextlib.contextmanager
def opened(url, **options):
    page = Page(url, **options)
    try:
        yield page
    finally:
        page.driver.quit()


def shows_the_server_and_its_adapters(url, _):
    with opened(url) as page:
        page.wait_for_rows()
        assert {"shout", "pirate", "json", MARKUP} <= set(page.names()), page.names()
        glance = page.js("return document.getElementById('glance').innerText")
        for text in ["Valley 3.7M", "llama", "512", "Threads", "waiting", "of 2 GiB", "pages"]:
            assert text in glance, (text, glance)
        assert page.text("link") == "Live"
        page.check_access()
        page.check_clean()


def filters_and_sorts(url, _):
    with opened(url) as page:
        page.wait_for_rows()
        total = len(page.names())
        filter = page.driver.find_element(By.ID, "filter")
        filter.send_keys("PIR")
        assert page.names() == ["pirate"], page.names()
        assert page.text("count") == f"1 of {total}"
        filter.clear()
        filter.send_keys("no such adapter")
        assert page.names() == []
        filter.clear()
        filter.send_keys("o")
        assert "json" in page.names() and "pirate" not in page.names()
        filter.send_keys(Keys.BACKSPACE)
        names = page.names()
        assert names == sorted(names) and len(names) == total, names
        page.tab_to("e.closest('#columns') && e.textContent === 'Name'")
        sorting = "return all('[aria-sort]').map((th) => `${th.textContent} ${th.ariaSort}`)"
        assert page.js(sorting) == ["Name ascending"]
        page.press(Keys.ENTER)
        assert page.names() == names[::-1] and page.js(sorting) == ["Name descending"]
        page.tab_to("e.textContent === 'Tokens'")
        page.press(Keys.SPACE)
        assert page.js(sorting) == ["Tokens descending"]
        tokens = [int(text.replace(",", "")) for text in page.column("Tokens")]
        assert tokens == sorted(tokens, reverse=True), tokens
        page.check_clean()


def answers_side_by_side_by_keyboard(url, shots):
    with opened(url) as page:
        page.wait_for_rows()
        for name in ["pirate", "shout"]:
            page.tab_to(f"e.type === 'checkbox' && e.parentElement.textContent === '{name}'")
            page.press(Keys.SPACE)
        page.tab_to("e.id === 'prompt'")
        page.press(PROMPT)
        page.tab_to("e.id === 'base'")
        page.chord(Keys.CONTROL, Keys.ENTER)
        answers = page.wait_for_end()
        assert list(answers) == ["base model", "pirate", "shout"], answers
        for title, told in answers.items():
            assert told["finish"] == "stop" and told["error"] == "", (title, told)
            assert int(told["tokens"]) > 20 and float(told["rate"].rstrip("K")) > 0, (title, told)
            assert told["first"].endswith((" ms", " s")), (title, told)
        base, shout, pirate = (answers[n]["text"] for n in ["base model", "shout", "pirate"])
        assert shout.isupper() and not base.isupper() and len({base, shout, pirate}) == 3, answers
        assert "Arr!" in pirate and "Arr!" not in base, answers
        sent = [body["lora"] for body in page.questions()]
        assert sent == [[], [{"name": "pirate", "scale": 1}], [{"name": "shout", "scale": 1}]], sent
        # The table takes notice, and the ticks stay.
        page.wait("return all('#rows tr').at(-1).textContent.startsWith('shoutresident')")
        assert page.ticked() == ["pirate", "shout"]
        page.check_access()
        page.screenshot(shots, "light")
        page.check_clean()

        # At scale 0 an adapter does nothing; and any scale between the steps may be asked for.
        page.size(900)
        scale_of = "e.type === 'number' && e.parentElement.textContent.includes('Scale of {}')"
        page.tab_to(scale_of.format("shout"))
        page.chord(Keys.CONTROL, "a")
        page.press("0")
        page.tab_to(scale_of.format("pirate"), backwards=True)
        page.chord(Keys.CONTROL, "a")
        page.press("0.333")
        page.chord(Keys.CONTROL, Keys.ENTER)
        answers = page.wait_for_end()
        assert answers["shout × 0"]["text"] == answers["base model"]["text"], answers
        assert answers["pirate × 0.333"]["finish"] == "stop", answers
        # What is left out of the answers is not ticked any more.
        page.tab_to("e.ariaLabel === 'Leave out shout'")
        page.press(Keys.ENTER)
        assert page.ticked() == ["pirate"]
        assert page.js("return document.activeElement.id") == "base"
        page.check_clean()


def stops_in_the_middle(url, _):
    with opened(url) as page:
        page.wait_for_rows()
        page.tick("shout")
        for stop in ["Escape", "button"]:
            # A slow line, for the model is a fast one.
            page.throttle(6000)
            page.ask(PROMPT)
            # Both come at once, piece by piece.
            page.wait("""
                const busy = all('article .text[aria-busy=true]');
                return busy.length === 2 && busy.every((e) => e.textContent.length > 20);""")
            if stop == "Escape":
                page.press(Keys.ESCAPE)
            else:
                page.tab_to("e.id === 'stop'")
                page.press(Keys.ENTER)
            for title, told in page.wait_for_end().items():
                assert told["finish"] == "stopped" and told["error"] == "", (title, told)
                assert told["tokens"].startswith("≥ ") and len(told["text"]) > 20, (title, told)
            assert page.text("status") == "Stopped."
            page.throttle(-1)
            page.wait("return document.getElementById('running').textContent === '0'")
            page.driver.find_element(By.ID, "prompt").clear()
        page.check_clean()


def is_dark_where_that_is_preferred(url, shots):
    ground = "return getComputedStyle(document.body).backgroundColor"
    with opened(url) as light, opened(url, dark=True) as dark:
        assert light.js(ground) != dark.js(ground)
        dark.wait_for_rows()
        dark.tick("shout")
        dark.ask(PROMPT)
        dark.wait_for_end()
        dark.check_access()
        dark.screenshot(shots, "dark")
        dark.check_clean()


def fits_a_phone(url, shots):
    with opened(url, width=360, height=740) as page:
        page.wait_for_rows()
        page.tick("shout")
        page.tick(MARKUP)
        page.ask(PROMPT)
        answers = page.wait_for_end()
        assert answers["shout"]["text"].isupper(), answers
        assert answers[MARKUP]["text"] == answers["shout"]["text"], answers
        page.check_access()
        page.screenshot(shots, "phone")
        page.check_clean()


def stands_still_where_motion_is_not_wanted(url, _):
    caret = """
        const answer = document.getElementById('answer-template').content.cloneNode(true);
        document.body.append(answer);
        return getComputedStyle(all('body > article .text')[0], '::after').animationName;"""
    for wish, moves in [("no-preference", True), ("reduce", False)]:
        with opened(url) as page:
            feature = {"name": "prefers-reduced-motion", "value": wish}
            page.cdp("Emulation.setEmulatedMedia", features=[feature])
            assert (page.js(caret) != "none") == moves, wish


def reads_streams_however_they_are_cut(url, _):
    """And goes on with the text where the model has no chat template."""
    no_template = {"error": {"message": "This model has no chat template: use /v1/completions."}}
    pieces = ["Ça ", "va, ", "naïve ", "🦊?"]
    chunks = [{"choices": [{"text": piece, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"text": "", "finish_reason": "length"}]})
    chunks.append({"choices": [], "usage": {"completion_tokens": 9}})
    events = [": still here", *(f"data: {json.dumps(c, ensure_ascii=False)}" for c in chunks)]
    stream = "\r\n\r\n".join([*events, "data: [DONE]\n\n"])
    faults = {
        "v1/chat/completions": {"status": 400, "body": json.dumps(no_template)},
        "v1/completions": {"body": stream},
    }
    with opened(url, faults=faults) as page:
        page.wait_for_rows()
        page.ask("Salut")
        told = page.wait_for_end()["base model"]
        assert told["text"] == "".join(pieces), told
        assert (told["tokens"], told["finish"]) == ("9", "length"), told
        assert "no chat template" in page.text("status")
        assert page.questions()[-1]["prompt"] == "Salut"
        page.check_clean()


def tells_errors_where_they_belong(url, _):
    def error(message):
        return json.dumps({"error": {"message": message}})

    busy = {"status": 429, "body": error("Too many."), "headers": {"Retry-After": "7"}}
    began = 'data: {"choices":[{"delta":{"content":"Once"}}]}\n\n'
    cases = [
        (busy, "Too many. Try again in 7 s.", ""),
        ({"status": 502, "body": "<html>"}, "The server answered with status 502.", ""),
        ({"body": f"{began}data: {error('It broke.')}\n\n"}, "It broke.", "Once"),
        ({"body": began}, "The connection to the server was lost.", "Once"),
    ]
    for fault, message, text in cases:
        with opened(url, faults={"v1/chat/completions": fault}) as page:
            page.wait_for_rows()
            page.ask("Hello")
            told = page.wait_for_end()["base model"]
            assert (told["error"], told["text"], told["finish"]) == (message, text, "failed"), told
            assert page.text("status") == "Not all could answer."
            page.check_access()
            page.check_clean()
    with opened(url) as page:
        page.wait_for_rows()
        # Nobody to answer, six at once, no prompt, no number: nothing is sent.
        page.driver.find_element(By.ID, "base").click()
        page.ask("Hello")
        assert page.text("limit") == "Choose who is to answer."
        page.tick("shout")
        scale = page.driver.find_element(By.CSS_SELECTOR, "#chosen [type=number]")
        scale.clear()
        page.chord(Keys.CONTROL, Keys.ENTER)
        assert page.js("return document.activeElement === arguments[0]", scale)
        assert page.questions() == [] and page.answers() == {}
        page.check_clean()


def stays_quick_with_thousands(url, _):
    state = {
        "model": {"id": "m", "architecture": "llama", "parameters": 1, "context": 64, "threads": 1},
        "cache": None,
        "requests": None,
        "adapters": [
            {
                "id": i,
                "name": f"tenant-{i}",
                "state": "failed" if i == 4321 else "registered",
                "bytes": None,
                "rank": None,
                "generation": 1,
                "hash": None,
                "requests": i,
                "tokens": 0,
                "running": 0,
                "waiting": 0,
                **({"error": "rank 8 <b>or</b> 9"} if i == 4321 else {}),
            }
            for i in range(5000)
        ],
    }
    with opened(url, faults={"adapters": {"body": json.dumps(state)}}) as page:
        page.wait_for_rows()
        assert len(page.names()) == 200 and page.names()[:3] == ["tenant-0", "tenant-1", "tenant-2"]
        assert page.text("count").startswith("5,000; the first 200")
        assert page.shows(".of-admin") == [False] * 3
        # The same again changes nothing.
        page.js("""
            window.changes = 0;
            const observer = new MutationObserver((seen) => (changes += seen.length));
            observer.observe(all('#rows')[0], {
              subtree: true, childList: true, attributes: true, characterData: true,
            });""")
        polls = page.js("return asked.length")
        page.wait("return asked.length > arguments[0] + 1", polls)
        assert page.js("return changes") == 0
        filter = page.driver.find_element(By.ID, "filter")
        filter.send_keys("failed")
        assert page.names() == ["tenant-4321"] and page.column("State") == [
            "failedrank 8 <b>or</b> 9"
        ]
        page.check_access()
        filter.clear()
        filter.send_keys("-")
        page.tab_to("e.textContent === 'Requests'")
        page.press(Keys.ENTER)
        assert page.names()[:2] == ["tenant-4999", "tenant-4998"]
        # Six are one too many for a browser's connections.
        for name in page.names()[:5]:
            page.tick(name)
        page.ask("Hello")
        assert page.text("limit") == "At most 5 can answer at once."
        assert page.questions() == []
        page.check_clean()


def rests_while_it_is_hidden(url, _):
    with opened(url) as page:
        page.wait_for_rows()
        hide = """
            const value = arguments[0];
            Object.defineProperty(document, 'hidden', { value, configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));"""
        page.js(hide, True)
        time.sleep(0.5)
        polls = page.js("return asked.length")
        time.sleep(5)
        assert page.js("return asked.length") == polls
        page.js(hide, False)
        page.wait("return asked.length > arguments[0]", polls, seconds=1)
        page.check_clean()


def asks_for_a_key(url, admin_key, user_key, shots):
    refused = "401 (Unauthorized)"  # The browser itself tells of it in the console.
    with opened(url) as page:
        page.wait("return document.activeElement.id === 'key'")
        assert page.shows("#content") == [False]
        page.check_access()
        page.press("wrong", Keys.ENTER)
        page.wait("return all('#key-error')[0].textContent.includes('not know')")
        page.check_access()
        page.screenshot(shots, "key")
        page.size(900)
        page.driver.find_element(By.ID, "key").click()
        page.press(admin_key, Keys.ENTER)
        page.wait_for_rows()
        assert page.js("return document.activeElement.id") == "filter"
        assert page.js("return document.getElementById('key').value") == ""
        assert {"shout", "pirate", "json"} <= set(page.names())
        assert page.shows(".of-admin") == [True] * 3
        page.tick("shout")
        page.ask(PROMPT)
        assert page.wait_for_end()["shout"]["text"].isupper()
        # It lasts as long as the tab, and nothing else is kept.
        page.driver.refresh()
        page.wait_for_rows()
        kept = page.js("return [{ ...sessionStorage }, { ...localStorage }, document.cookie]")
        assert kept == [{"api-key": admin_key}, {}, ""], kept
        page.tab_to("e.id === 'forget'")
        page.press(Keys.ENTER)
        page.wait("return document.activeElement?.id === 'key'")
        assert page.js("return sessionStorage.length") == 0
        page.press(user_key, Keys.ENTER)
        page.wait_for_rows()
        assert page.names() == ["shout"], page.names()
        assert page.shows(".of-admin") == [False] * 3
        page.check_access()
        page.check_clean(allowed=refused)


TESTS = [
    shows_the_server_and_its_adapters,
    filters_and_sorts,
    answers_side_by_side_by_keyboard,
    stops_in_the_middle,
    is_dark_where_that_is_preferred,
    fits_a_phone,
    stands_still_where_motion_is_not_wanted,
    reads_streams_however_they_are_cut,
    tells_errors_where_they_belong,
    stays_quick_with_thousands,
    rests_while_it_is_hidden,
]


def main():
    parser = argparse.ArgumentParser(description="Tries the page of `polylora serve` in Chromium.")
    parser.add_argument("url", help="a server without keys")
    parser.add_argument("--keyed", metavar="URL", help="a server with keys")
    parser.add_argument("--admin-key", help="a key of it that may use everything")
    parser.add_argument("--user-key", help="a key of it that may use the adapter `shout` alone")
    parser.add_argument("--screenshots", metavar="DIR", help="where to leave pictures of the page")
    arguments = parser.parse_args()
    for test in TESTS:
        test(arguments.url, arguments.screenshots)
        print("ok  ", test.__name__, flush=True)
    if arguments.keyed:
        keys = arguments.admin_key, arguments.user_key
        asks_for_a_key(arguments.keyed, *keys, arguments.screenshots)
        print("ok  ", asks_for_a_key.__name__)
    else:
        print("left out:", asks_for_a_key.__name__)


if __name__ == "__main__":
    main()
