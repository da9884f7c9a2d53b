"""Opens a report in a real browser and uses it: slider, filters, keyboard, attacks.

    python scripts/check_report.py runs/demo/certify/test/report.html /tmp/screenshots

Needs Chromium (on Debian: apt install chromium) and nothing else; not part of `make
test`. Whatever the page shows is compared with the numbers embedded in it; a message on
the console, a request to anywhere, or a page wider than its window is an error. Light,
dark and narrow screenshots are left to be looked at. BROWSER names another Chromium.
"""

import array
import base64
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --hide-scrollbars
    --remote-debugging-pipe
"""
CERTIFIED = {"certified-right", "certified-wrong"}
RIGHT = {"certified-right", "right"}


class Browser:
    """One page of a headless Chromium, spoken to over a pipe (DevTools protocol)."""

    def __init__(self, folder):
        program = os.environ.get("BROWSER") or shutil.which("chromium")
        if program is None:
            sys.exit("no chromium found; apt install chromium, or set BROWSER")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def take_pipes():  # Chromium reads from 3 and writes to 4
            os.dup2(to_read, 103)
            os.dup2(to_write, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=take_pipes,
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers, self._buffer, self._session = itertools.count(1), b"", None
        self.complaints, self.requests, self._loaded = [], [], False
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (found := self._receive()).get("id") != number:
            self._note(found)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            self._buffer += os.read(self._read, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        method, found = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and found["type"] != "log"
        ):
            self.complaints.append(json.dumps(found)[:400])
        elif method == "Log.entryAdded":
            self.complaints.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"][:80])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(self, url):
        self._loaded = False
        self("Page.navigate", url=url)
        while not self._loaded:
            self._note(self._receive())

    def look(self, width, height, *, dark=False):
        """Sets the window and the color scheme."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1 if width > 500 else 2,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression):
        """The value of a JavaScript expression."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key):
        text = {"Enter": "\r", " ": " "}.get(key)
        code = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, " ": 32}
        code |= {"ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code[key]}
        extra = {"text": text} if text else {}
        self("Input.dispatchKeyEvent", type="keyDown", **common, **extra)
        self("Input.dispatchKeyEvent", type="keyUp", **common)

    def photograph(self, path, *, is_whole=False):
        extra = {"captureBeyondViewport": True} if is_whole else {}
        if is_whole:
            size = self("Page.getLayoutMetrics")["cssContentSize"]
            extra["clip"] = {**size, "scale": 1}
        found = self("Page.captureScreenshot", format="png", **extra)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self):
        self("Browser.close")
        self._process.wait(timeout=20)


def outcome(data, voting, side, image):
    found = data["votings"][voting]
    is_right = found["prediction"][image] == data["labels"][image]
    is_certified = found["margin"][image][side] >= 0
    return {
        (True, True): "certified-right",
        (False, True): "right",
        (True, False): "certified-wrong",
        (False, False): "wrong",
    }[is_certified, is_right]


def same(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: the page shows {found!r}, it must be {wanted!r}")


def check_outcomes(browser, data, voting, side, label=None):
    """The counts beside the outcomes, and the status, for one setting of the form."""
    images = [i for i, k in enumerate(data["labels"]) if label in (None, k)]
    found = [outcome(data, voting, side, i) for i in images]
    for key in ("certified-right", "right", "certified-wrong", "wrong"):
        shown = browser.ask(f"document.getElementById('count-{key}').textContent")
        same(f"{voting}, {side}, {key}", shown, f"{found.count(key):,}")
    status = browser.ask("document.getElementById('status').textContent")
    wanted = (
        f"{len(images):,} image{'s'[len(images) == 1 :]}"
        if images
        else "no image is like that"
    )
    same("status", status.split(" of ")[-1], wanted)


def check_table(browser, data, side):
    """The live table against the embedded counts, of all images."""
    cells = browser.ask(
        "[...document.querySelectorAll('#live tbody tr')].map(r => "
        "[...r.children].map(c => c.textContent))"
    )
    rows = {
        name.replace("_", " "): {"clean": found["clean"], **found["squares"][side]}
        for name, found in data["votings"].items()
    }
    rows["double masking"] = data["masking"]["squares"][side]
    for row, (name, found) in zip(cells, rows.items(), strict=True):
        if found is None:
            same("live table", row, [name, "too large for it"])
            continue
        wanted = [name]
        for count, low, high in (found["clean"], found["certified"]):
            share = f"{100 * count / data['numImages']:.1f}"
            wanted.append(f"{share}{100 * low:.1f} to {100 * high:.1f}")
        wanted.append(f"{100 * found['wrong'][0] / data['numImages']:.1f}")
        detected = found.get("detected")
        share = f"{100 * detected[0] / data['numImages']:.1f}" if detected else ""
        same("live table", row, [*wanted, share])


def check_slider(browser, data):
    browser.ask("document.querySelector('.card').click()")
    pressed = "document.querySelector('[aria-pressed=true]').dataset.image"
    image = browser.ask(f"Number({pressed})")
    browser.ask("document.getElementById('side').focus()")
    browser.press("Home")
    for side, size in enumerate(data["sides"]):
        text = browser.ask("document.getElementById('side-text').textContent")
        same("slider", text, f"{size}x{size}")
        check_table(browser, data, side)
        check_outcomes(browser, data, data["main"], side)
        check_masked(browser, data, side, image)
        browser.press("ArrowRight")
    browser.press("Escape")


def set_form(browser, name, value):
    browser.ask(
        f"(() => {{ const one = document.getElementById({name!r}); one.value = "
        f"{json.dumps(value)}; one.dispatchEvent(new Event('input', {{bubbles: true}}))"
        " })()"
    )


def check_filters(browser, data):
    side = data["sides"].index(data["focus"])
    set_form(browser, "side", str(side))
    for label in range(min(3, len(data["classes"]))):
        set_form(browser, "class", str(label))
        check_outcomes(browser, data, data["main"], side, label)
    set_form(browser, "class", "all")
    for name in data["votings"]:
        browser.ask(f"document.querySelector('[name=voting][value={name}]').click()")
        check_outcomes(browser, data, name, side)
    browser.ask(
        f"document.querySelector('[name=voting][value={data['main']}]').click()"
    )
    box = "document.querySelector('#outcomes [value=certified-right]')"
    browser.ask(f"{box}.click()")
    shown = browser.ask(
        "[...document.querySelectorAll('.card')].map(c => Number(c.dataset.image))"
    )
    found = {outcome(data, data["main"], side, i) for i in shown}
    if "certified-right" in found:
        sys.exit("an outcome that is not ticked is shown")
    browser.ask(f"{box}.click()")
    set_form(browser, "order", "least")
    first = browser.ask("Number(document.querySelector('.card').dataset.image)")
    margins = [row[side] for row in data["votings"][data["main"]]["margin"]]
    same("least margin", margins[first], min(margins))
    set_form(browser, "order", "turns")


def signed(value, digits):
    sign = "+" if value > 0 else "\u2212" if value < 0 else ""
    return f"{sign}{abs(value):.{digits}f}"


def check_masked(browser, data, side, image):
    """What the page adds up without the worst two masks is the lead that was found."""
    found = data["masking"]["squares"][side]
    shown = browser.ask("document.querySelector('#detail .masked')?.textContent")
    if found is None:
        return same("masked", shown, None)
    answer, rival = found["answer"][image], found["rival"][image]
    lead = (found["margin"][image] + (rival < answer)) / data["masking"]["perNat"]
    name = data["classes"][answer]
    return same("masked", shown, f"lead of {name}, in nats{signed(lead, 3)}")


def check_keyboard(browser, data):
    """Tab reaches the gallery; Enter opens, arrows move, Escape closes and returns."""
    browser.ask("document.getElementById('order').focus()")
    here = "document.activeElement"
    for _ in range(12):
        browser.press("Tab")
        if browser.ask(f"{here}.classList.contains('card')"):
            break
    else:
        sys.exit("Tab does not reach the gallery")
    browser.press("Enter")
    side = data["sides"].index(data["focus"])
    found = data["votings"][data["main"]]
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        browser.press(key)
        image = browser.ask(f"Number({here}.dataset.image)")
        pressed = browser.ask(
            "Number(document.querySelector('[aria-pressed=true]').dataset.image)"
        )
        same("selected image", pressed, image)
        shown = browser.ask("document.querySelector('#detail .sum').textContent")
        margin = found["margin"][image][side] / found["limit"]
        digits = 2 if found["limit"] > 1 else 0
        # What the page adds up from the votes is the margin that was computed.
        same("margin", shown, f"margin{signed(margin, digits)}")
        check_masked(browser, data, side, image)
    browser.press("Escape")
    same("closed", browser.ask("document.getElementById('detail').hidden"), True)
    same("focus", browser.ask(f"Number({here}.dataset.image)"), image)


def check_attacks(browser, data, out):
    """What the page says and adds up of attacked images, and how it finds them."""
    for number, attack in enumerate(data["attacks"]):
        fell = [
            own != won
            for own, won in zip(attack["before"], attack["after"], strict=True)
        ]
        for is_fallen in set(fell):
            set_form(browser, "attack", f"{number} {json.dumps(is_fallen)}")
            status = browser.ask("document.getElementById('status').textContent")
            count = int(status.split(" of ")[-1].split()[0].replace(",", ""))
            same("attacked images", count, fell.count(is_fallen))
            browser.ask("document.querySelector('.card').click()")
            pressed = "document.querySelector('[aria-pressed=true]').dataset.image"
            k = attack["images"].index(browser.ask(f"Number({pressed})"))
            same("fell", fell[k], is_fallen)
            title = f"Attacked by a {'x'.join(map(str, attack['size']))} patch"
            here = (
                "[...document.querySelectorAll('#detail h4')]"
                f".find(h => h.textContent === {title!r})"
            )
            same(title, browser.ask(f"Boolean({here})"), True)
            if attack["preferences"]:
                check_preferences(browser, attack, k)
            browser.ask(f"{here}.scrollIntoView({{behavior: 'instant'}})")
            kind = "fell" if is_fallen else "stands"
            browser.photograph(out / f"{attack['name']}-{kind}.png")
            browser.press("Escape")
    if data["attacks"]:
        set_form(browser, "attack", "all")


def check_preferences(browser, attack, k):
    """The sums before and after are those of what is embedded."""
    both = array.array("h", base64.b64decode(attack["preferences"][k]))
    half, unit = len(both) // 2, attack["unit"]
    digits = 3 if attack["decision"] == "double_masking" else 2 if unit > 1 else 0
    sums = sum(both[:half]), sum(both[half:])
    wanted = ["all", *(signed(one / unit, digits) for one in sums)]
    rows = browser.ask(
        "[...document.querySelectorAll('#detail .attacked .total')].map("
        "r => [...r.children].map(c => c.textContent))"
    )
    same("sums of an attack", wanted in rows, True)


def main(report, out):
    out.mkdir(parents=True, exist_ok=True)
    text = report.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        browser.look(1280, 900)
        browser.open(report.resolve().as_uri())
        check_slider(browser, data)
        check_filters(browser, data)
        check_keyboard(browser, data)
        check_attacks(browser, data, out)
        for name, width, dark in (
            ("light", 1280, False),
            ("dark", 1280, True),
            ("narrow", 390, False),
            ("narrow-dark", 390, True),
            ("wide", 1920, False),
        ):
            browser.look(width, 900, dark=dark)
            browser.ask("document.querySelector('.card').click()")
            size = browser.ask("document.documentElement.scrollWidth")
            if size > width:
                sys.exit(f"at {width} px the page is {size} px wide")
            browser.ask(
                "document.querySelector('.browse')"
                ".scrollIntoView({behavior: 'instant'})"
            )
            browser.photograph(out / f"{name}-explorer.png")
            browser.ask("document.querySelector('#detail .close').click()")
            browser.ask("window.scrollTo({top: 0, behavior: 'instant'})")
            browser.photograph(out / f"{name}-whole.png", is_whole=True)
        requests = [url for url in browser.requests if not url.startswith("data:")]
        same("requests", requests, [report.resolve().as_uri()[:80]])
        same("console", browser.complaints, [])
        browser.close()
    print(f"{report} ({len(text.encode()) / 1e6:.1f} MB) works; look at {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/check_report.py report.html SCREENSHOTS")
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
