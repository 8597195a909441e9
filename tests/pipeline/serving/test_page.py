"""The page in Chromium at a phone's width, with a real model behind it: what a person does, and what the page shows."""

import base64
import json
import re
import shutil
import subprocess
import threading
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.prompts import CHAT_DECODING, chat_prompt
from pipeline.serve import page_of
from pipeline.serving.http_server import PageServer
from pipeline.serving.tasks import Tasks
from tests.support.web_folder import jpeg_bytes

PHONE_PX = 390
PICTURES = [jpeg_bytes(5, 90, 120), jpeg_bytes(6, 120, 60), jpeg_bytes(7, 60, 60)]
PICTURE = PICTURES[0]
FRAME = f"<!doctype html><title></title><iframe src=/ width={PHONE_PX} height=800 style=border:0></iframe>"
DRIVER = (
    """<script>
const told = {faults: [], width: 0}, plain = fetch, shown = selector => document.querySelector(selector).textContent;
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"]) {
  addEventListener(kind, event => told.faults.push(`${kind}: ${event.message || event.reason || event.blockedURI}`));
}
fetch = async (path, asked) => {
  if (path === "/answer") told.asked = (await asked.body.text()).split("\\n")[0];
  return plain(path, asked);
};
const until = async ready => {
  for (let tries = 0; tries < 500 && !ready(); tries++) await new Promise(done => setTimeout(done, 20));
  if (!ready()) told.faults.push(`waited for ${ready}`);
  told.width = Math.max(told.width, document.documentElement.scrollWidth);
};
const submit = async (id, ready) => { find(id).requestSubmit(); await until(ready); };
const file = (name = "holiday.jpg", number = 0) => {
  const bytes = Uint8Array.from(atob(%p[number]), letter => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: "image/jpeg"}));
  return data;
};
const drop = (...which) => dispatchEvent(new DragEvent("drop", {dataTransfer: file(...which)}));
const say = () => {
  told.nameless = [...document.querySelectorAll("input, textarea, button")].filter(
    each => !(each.labels?.length || each.textContent.trim())).map(each => each.id);
  parent.document.title = JSON.stringify(told);
};
(async () => { try { %s } catch (error) { told.faults.push(String(error)); } say(); })();
</script></body>"""
).replace("%p", json.dumps([base64.b64encode(each).decode() for each in PICTURES]))

STAGE_2 = """
  await submit("caption", () => shown("#caption .fault"));
  told.early = shown("#caption .fault");
  drop();
  await until(() => find("picture").naturalWidth > 0);
  told.picture = [find("picture").naturalWidth, find("picture").naturalHeight];
  await submit("caption", () => shown("output"));
  told.caption = shown("output");
  for (const question of ["colour ?", "<b>number</b> ?"]) {
    const before = turns.length;
    find("question").value = question;
    await submit("answer", () => turns.length > before);
  }
  told.second = told.asked;
  told.turns = [...document.querySelectorAll("#turns > *")].map(each => each.textContent);
  await submit("attention", () => !find("maps").hidden);
  told.maps = document.querySelectorAll("#small button").length;
  document.querySelectorAll("#small button")[2].click();
  told.said = shown("#said");
  const canvas = document.querySelector("#large canvas");
  told.canvas = canvas.width;
  told.colours = new Set(canvas.getContext("2d").getImageData(0, 0, 4, 4).data).size > 8;
  find("url").value = "http://127.0.0.1:1/a.jpg";
  await submit("fetch", () => shown("#fetch .fault"));
  told.fault = shown("#fetch .fault");
  find("again").click();
  told.left = [turns.length, find("turns").children.length];
  find("question").value = "colour ?";
  await submit("answer", () => turns.length);
  drop();
  told.left.push(turns.length, find("turns").children.length);
"""
SEVERAL = """
  const names = () => [...document.querySelectorAll("#thumbnails span")].map(each => each.textContent);
  const told_of = () => [names(), shown("#name"), find("thumbnails").hidden, find("marks").hidden];
  told.seen = [];
  drop("one.jpg");
  told.seen.push(told_of());
  drop("two.jpg");
  told.seen.push(told_of());
  find("several").click();
  drop("three.jpg", 1);
  dispatchEvent(new ClipboardEvent("paste", {clipboardData: file("four.jpg", 2)}));
  await until(() => [...document.querySelectorAll("#thumbnails img")].every(each => each.naturalWidth > 0));
  told.seen.push(told_of());
  await submit("caption", () => shown("#caption .fault"));
  told.fault = shown("#caption .fault");
  find("mark").click();
  find("prompt").setRangeText("red <image> a <image>", 8, 8, "end");
  await submit("caption", () => shown("output"));
  told.three = shown("output");
  document.querySelectorAll("#thumbnails li")[1].children[0].click();
  told.seen.push(told_of());
  told.emptied = shown("output");
  document.querySelectorAll("#thumbnails li")[0].children[1].click();
  told.seen.push(told_of());
  find("prompt").value = "<image> red <image>";
  await submit("caption", () => shown("output"));
  told.two = shown("output");
  find("question").value = "colour ?";
  await submit("answer", () => turns.length);
  told.answer = turns[0][1];
  for (let more = 0; more < 9; more++) drop("more.jpg");
  told.most = [names().length, shown("#fetch .fault")];
  find("several").click();
  told.seen.push(told_of());
  for (const each of [0, 1]) document.querySelector("#thumbnails li")?.children[1].click();
  told.none = [find("given").hidden, given];
  const both = file("five.jpg");
  both.items.add(both.files[0]);
  dispatchEvent(new DragEvent("drop", {dataTransfer: both}));
  told.seen.push(told_of());
"""
STAGE_1 = """
  dispatchEvent(new ClipboardEvent("paste", {clipboardData: file()}));
  await until(() => find("picture").naturalWidth > 0);
  find("texts").value = `red\\n\\n${"longword".repeat(30)}\\n`;
  await submit("match", () => find("scores").children.length);
  told.scores = [...find("scores").children].map(row => [...row.children].map(cell => cell.textContent));
  await submit("attention", () => !find("maps").hidden);
  drop();
  told.old = !find("maps").hidden || !find("scores").parentElement.hidden;
  const broken = new DataTransfer();
  broken.items.add(new File(["no picture"], "broken.jpg", {type: "image/jpeg"}));
  dispatchEvent(new DragEvent("drop", {dataTransfer: broken}));
  await submit("attention", () => shown("#attention .fault"));
  told.fault = shown("#attention .fault");
"""


class Site(PageServer):
    """The page's server with one more path: the page in a frame of a phone's width, as Chromium's windows are wider."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 0)
        plain: Any = self.RequestHandlerClass

        class Framed(plain):  # type: ignore[misc]
            def do_GET(self) -> None:
                if self.path == "/framed":
                    self._send(200, ("text/html", FRAME.encode()))
                else:
                    super().do_GET()

        self.RequestHandlerClass = Framed


def driven(weights: Path, steps: str, tmp_path: Path) -> dict[str, Any]:
    """What the page told after the steps, as Chromium ran them."""
    model = pipeline.load(weights)
    with Site() as server:
        driver = DRIVER.replace("%s", steps)
        server.open(page_of(model, weights).replace("</body>", driver), Tasks(model).by_path())
        server.policy = server.policy.replace("frame-ancestors 'none'", "frame-ancestors 'self'")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=60000"]
            command = ["chromium", *flags, f"--user-data-dir={tmp_path}/profile", f"{server.url}framed"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        finally:
            server.shutdown()
            thread.join()
    told: dict[str, Any] = json.loads(unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))  # type: ignore[index]
    return told


browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed: nothing runs the page"
)


@browser
def test_a_picture_is_dropped_captioned_and_asked_about(weights: dict[str, Path], tmp_path: Path) -> None:
    told = driven(weights["t5"], STAGE_2, tmp_path)
    model = pipeline.load(weights["t5"])
    assert told["faults"] == told["nameless"] == [] and told["width"] <= PHONE_PX, told
    assert (told["early"], told["picture"]) == ("Give a picture first.", [90, 120])
    assert told["caption"] == model.caption(PICTURE)
    first = model.answer(PICTURE, "colour ?", chat_prompt(model.recipe), **CHAT_DECODING)
    second = "<b>number</b> ?"
    after = model.answer(PICTURE, second, chat_prompt(model.recipe), [("colour ?", first)], **CHAT_DECODING)
    assert told["turns"] == ["colour ?", first, second, after] and told["left"] == [0, 0, 0, 0]
    assert json.loads(told["second"]) == {"question": second, "earlier": [["colour ?", first]]}
    assert (told["maps"], told["canvas"], told["colours"]) == (5, 4, True)
    share = 100 * model.attention(PICTURE)[1].sum()
    assert told["said"].startswith(f"Query 2: {share:.0f}% of the attention is on the picture's patches")
    assert "cannot be fetched (refused_address)" in told["fault"]


@browser
def test_several_pictures_are_kept_for_one_prompt(weights: dict[str, Path], tmp_path: Path) -> None:
    told = driven(weights["opt"], SEVERAL, tmp_path)
    model = pipeline.load(weights["opt"])
    assert told["faults"] == told["nameless"] == [] and told["width"] <= PHONE_PX, told
    numbered = [f"Picture {number}" for number in range(1, 9)]
    assert told["seen"] == [
        [numbered[:1], "one.jpg", True, True],
        [numbered[:1], "two.jpg", True, True],
        [numbered[:3], "four.jpg", False, False],
        [numbered[:3], "three.jpg", False, False],
        [numbered[:2], "three.jpg", False, False],
        [numbered[:1], "more.jpg", True, True],
        [numbered[:2], "five.jpg", False, False],
    ]
    assert "has 0 marks <image> for 3 pictures" in told["fault"] and told["emptied"] == ""
    assert told["three"] == " ".join(model.caption([PICTURES], "<image> red <image> a <image>")[0].split())
    assert told["two"] == " ".join(model.caption([PICTURES[1:]], "<image> red <image>")[0].split())
    assert told["answer"] == model.answer(PICTURES[1], "colour ?", chat_prompt(model.recipe), **CHAT_DECODING)
    assert told["most"] == [8, "more.jpg: these are 8 pictures already; remove one first."]
    assert told["none"] == [True, None]


@browser
def test_texts_are_scored_for_a_pasted_picture(weights: dict[str, Path], tmp_path: Path) -> None:
    told = driven(weights["stage1"], STAGE_1, tmp_path)
    assert told["faults"] == told["nameless"] == [] and told["width"] <= PHONE_PX, told
    scores = pipeline.load(weights["stage1"]).match(PICTURE, ["red", "longword" * 30])
    rows = zip(["red", "longword" * 30], scores.itm.tolist(), scores.itc.tolist(), strict=True)
    assert told["scores"] == [
        [text, f"{100 * itm:.1f}%", f"{itc:.3f}"] for text, itm, itc in sorted(rows, key=lambda row: -row[1])
    ]
    assert not told["old"], "what was shown of the picture before"
    assert told["fault"].startswith("a picture: is not readable as a picture")


def test_a_page_has_the_sections_of_its_weights_and_asks_no_other_server(weights: dict[str, Path]) -> None:
    sections = {"caption", "answer", "match", "attention"}
    for name, expected in (("stage1", {"match", "attention"}), ("t5", {"caption", "answer", "attention"}),
                           ("tuned", {"answer", "attention"})):  # fmt: skip
        page = page_of(pipeline.load(weights[name]), Path("<script>alert(1)</script>\x1b[2J"))
        assert set(re.findall('<form id="(.*?)">', page)) & sections == expected
        assert not re.search(r"(?:src|href|action)=\"?(?!data:,)[\w/]|url\(|@import|\son\w+=|<script ", page)
        assert "<script>alert" not in page and "\x1b" not in page and "{{" not in page
        assert ("This Q-Former reads the question" in page) == (name == "tuned")
        assert "Queries need not be readable" in page
