"""The page in a browser: everything that a visitor can do, by keyboard, on small and large screens, light and dark."""

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pallava.model import ask as ask_model
from pallava.serving.record import to_markdown
from pallava.serving.replies import Reply
from pallava.serving.session import Exchange
from tests.serving.test_record import TEXTS
from tests.tiny.server import picture, serving

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--no-first-run", "--disable-quic"]
BUSY = "[aria-busy] > span:not(:empty)"  # an answer that has begun
SCREENS = {"desktop": (1200, 800), "phone": (360, 740)}

pytestmark = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("PALLAVA_NEEDS_BROWSER"), reason="no Chromium; apt-get install chromium"
)


@pytest.fixture(scope="module")
def url(parts: Any) -> Iterator[str]:
    with serving(*parts, max_images=2, max_new_tokens=12, max_pixels=200_000) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"slide {number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


class Visit:
    """A page, with what it asked for and complained of."""

    def __init__(self, browser: Any, url: str, screen: str = "desktop", scheme: str = "light") -> None:
        width, height = SCREENS[screen]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = context.new_page()
        self.places: set[str] = set()
        self.bodies: list[dict[str, Any]] = []  # of the questions
        self.complaints: list[str] = []
        self.page.on("request", self._note)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = url
        self.page.goto(url)
        self.page.locator("#versions:not(:empty)").wait_for()

    def _note(self, request: Any) -> None:
        self.places.add(request.url)
        if request.url.endswith("completions"):
            self.bodies.append(request.post_data_json)

    @property
    def num_images(self) -> list[int]:
        """Of each message of the last question."""
        contents = [each["content"] for each in self.bodies[-1]["messages"]]
        return [sum(part["type"] == "image_url" for part in each if isinstance(part, dict)) for each in contents]

    def show(self, *paths: Path) -> None:
        count = self.page.locator("figure").count()
        self.page.set_input_files("#files", [str(path) for path in paths])
        self.page.locator("figure").nth(count + len(paths) - 1).wait_for()

    def begin(self, question: str) -> None:
        """Ask by keyboard alone."""
        self.page.locator("#question").focus()
        self.page.keyboard.type(question)
        self.page.keyboard.press("Enter")

    def ask(self, question: str) -> str:
        """Ask, and return the answer."""
        count = self.page.locator(".answer").count()
        self.begin(question)
        self.page.locator(".answer .sure").nth(count).wait_for()
        return self.page.locator(".answer > span").nth(count).inner_text()

    def end(self, complaints: int = 0) -> None:
        """Nothing was asked of another place, and nothing went wrong in the page."""
        assert all(each.startswith((self.url, "data:", "blob:")) for each in self.places), self.places
        assert len(self.complaints) == complaints, self.complaints
        self.page.context.close()


def read(download: Any) -> str:
    return Path(download.value.path()).read_bytes().decode()  # as it is, with carriage returns


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_visit(browser: Any, url: str, parts: Any, images: list[Path], screen: str, scheme: str) -> None:
    visit = Visit(browser, url, screen, scheme)
    visit.show(images[0])
    answer = visit.ask("what is shown ?")
    assert answer == ask_model(*parts, images[0], "what is shown ?", max_new_tokens=12)
    history = [("what is shown ?", answer)]
    second = visit.ask("many nuclei ?")
    assert second == ask_model(*parts, images[0], "many nuclei ?", history=history, max_new_tokens=12)
    visit.page.get_by_role("button", name="Show what was read").press("Enter")
    overlay = visit.page.locator("figure canvas")
    overlay.wait_for()
    assert "%" in overlay.get_attribute("aria-label")
    frame, canvas = visit.page.locator(".frame").bounding_box(), overlay.bounding_box()
    assert canvas == pytest.approx(frame, abs=1), "the overlay lies on its picture"
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download").press("Enter")
    text = read(download)
    for each in ("research only", "slide 0.png", answer, second, "torch: ", "model: tiny", "date: 20", "greedy"):
        assert each in text
    wide = visit.page.evaluate("() => document.documentElement.scrollWidth > window.innerWidth")
    assert not wide, "nothing is beyond the screen's edge"
    visit.end()


def test_pictures_of_several_turns(browser: Any, url: str, parts: Any, images: list[Path]) -> None:
    """A picture belongs to the question after it; one that was removed is not sent."""
    visit = Visit(browser, url)
    visit.show(*images)
    visit.page.get_by_role("button", name="Remove slide 0.png").click()
    first = visit.ask("what is shown ?")
    assert first == ask_model(*parts, images[1], "what is shown ?", max_new_tokens=12)
    visit.show(images[0])
    visit.ask("yes ?")
    assert visit.page.locator(".mine").nth(1).locator(".with").inner_text() == "with slide 0.png"
    visit.page.get_by_role("button", name="New conversation").click()
    assert not visit.page.locator("figure").count()
    assert visit.ask("what is shown ?") == ask_model(*parts, None, "what is shown ?", max_new_tokens=12)
    visit.end()


def test_what_goes_wrong_is_a_sentence_and_the_question_stays(
    browser: Any, url: str, tmp_path: Path, images: list[Path]
) -> None:
    visit = Visit(browser, url)
    (tmp_path / "notes.png").write_text("no picture")
    large = tmp_path / "large.png"
    Image.new("RGB", (600, 500)).save(large)
    for path, said in ((tmp_path / "notes.png", "not a picture"), (large, "too large")):
        visit.show(path)
        visit.page.fill("#question", "what is shown ?")
        visit.page.keyboard.press("Enter")
        alert = visit.page.get_by_role("alert")
        alert.get_by_text(said).wait_for()
        assert alert.inner_text().startswith(f"{path.name}: ")
        assert alert.inner_text().endswith(".")
        assert visit.page.input_value("#question") == "what is shown ?"
        assert not visit.page.locator(".turn").count()
        visit.page.get_by_role("button", name="Remove").click()
    visit.page.fill("#question", "")
    visit.ask("what is shown ?")
    assert visit.page.get_by_role("alert").is_hidden()
    visit.end(complaints=2)  # the browser notes the two refusals


@pytest.fixture
def slowly(parts: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The model takes its time; undo it to end an answer."""
    forward = parts[0].llm.forward
    monkeypatch.setattr(parts[0].llm, "forward", lambda *args, **how: time.sleep(0.4) or forward(*args, **how))
    return monkeypatch


def test_an_answer_can_be_stopped(browser: Any, url: str, slowly: pytest.MonkeyPatch) -> None:
    visit = Visit(browser, url)
    visit.begin("what is shown ?")
    visit.page.locator(BUSY).wait_for()
    visit.page.keyboard.press("Escape")
    visit.page.get_by_text("Stopped by you.").wait_for()
    slowly.undo()
    assert visit.ask("yes ?")
    visit.end()


def test_a_picture_that_is_added_during_an_answer(
    browser: Any, url: str, parts: Any, images: list[Path], slowly: pytest.MonkeyPatch
) -> None:
    """It belongs to the next question, and can be removed until then; no new conversation begins meanwhile."""
    visit = Visit(browser, url)
    remove = visit.page.get_by_role("button", name="Remove")
    visit.show(images[0])
    visit.begin("what is shown ?")
    visit.page.locator(BUSY).wait_for()
    assert not remove.count()
    visit.show(images[1])
    assert [each.get_attribute("aria-label") for each in remove.all()] == ["Remove slide 1.png"]
    assert visit.page.locator("#new").is_disabled()
    slowly.undo()
    visit.page.locator(".answer .sure").wait_for()
    assert remove.count() == 1
    visit.ask("and this ?")
    assert visit.num_images == [1, 0, 1]
    assert not remove.count()
    visit.page.locator("#new").click()
    visit.ask("yes ?")
    assert visit.num_images == [0]
    visit.end()


def test_pictures_that_are_still_being_read(browser: Any, url: str, images: list[Path]) -> None:
    """The question waits for them, in the order in which they were added; one that cannot be read is not sent."""
    visit = Visit(browser, url)
    visit.page.evaluate("""() => {
        const read = FileReader.prototype.readAsDataURL;
        FileReader.prototype.readAsDataURL = function (file) {
            const wait = { "slide 0.png": 900, "slide 1.png": 300 }[file.name];
            if (wait) setTimeout(() => read.call(this, file), wait); else window.fail = () => this.onerror();
        };
    }""")
    visit.show(*images)
    visit.ask("what is shown ?")
    assert visit.num_images == [2]
    parts = visit.bodies[-1]["messages"][0]["content"][:2]
    sent = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]
    assert sent == [path.read_bytes() for path in images]
    shutil.copy(images[0], images[0].with_name("gone.png"))
    visit.show(images[0].with_name("gone.png"))
    visit.begin("and this ?")
    visit.page.keyboard.type("why ?")  # meanwhile
    visit.page.evaluate("() => fail()")
    visit.page.get_by_role("alert").get_by_text("gone.png").wait_for()
    assert visit.page.locator("figure").count() == 2
    assert visit.page.input_value("#question") == "and this ?\nwhy ?"
    assert len(visit.bodies) == 1
    visit.end()


def test_pictures_are_counted_as_they_stand(browser: Any, url: str, images: list[Path]) -> None:
    visit = Visit(browser, url)
    visit.show(*images)
    visit.page.get_by_role("button", name="Remove slide 0.png").click()
    visit.show(images[0])
    assert visit.page.locator(".name").all_inner_texts() == ["1. slide 1.png", "2. slide 0.png"]
    alternatives = [each.get_attribute("alt") for each in visit.page.locator("figure img").all()]
    assert alternatives == ["Picture 1: slide 1.png", "Picture 2: slide 0.png"]
    visit.end()


def test_the_end_of_an_answer_is_in_view(browser: Any, url: str) -> None:
    visit = Visit(browser, url)
    visit.page.set_viewport_size({"width": 1000, "height": 480})
    for question in ("what is shown ?", "yes ?", "many nuclei ?"):
        visit.ask(question)
    assert visit.page.evaluate("() => find('turns').scrollTop") > 0
    end, frame = visit.page.locator(".answer .sure").last.bounding_box(), visit.page.locator("#turns").bounding_box()
    assert end["y"] + end["height"] <= frame["y"] + frame["height"] + 1
    visit.end()


def test_what_a_screen_reader_says(browser: Any, url: str, images: list[Path], slowly: pytest.MonkeyPatch) -> None:
    """Who speaks; an answer once it is whole; and one name, not two states, of a button that shows and hides."""
    visit = Visit(browser, url)
    visit.show(images[0])
    visit.begin("what is shown ?")
    visit.page.locator(BUSY).wait_for()
    assert visit.page.locator(".answer").get_attribute("aria-busy") == "true"
    slowly.undo()
    visit.page.locator(".answer .sure").wait_for()
    assert visit.page.locator(".answer").get_attribute("aria-busy") is None
    speakers = visit.page.locator(".turn > .hidden")
    assert speakers.all_inner_texts() == ["You asked", "Answer"]
    visit.page.get_by_role("button", name="Show what was read").press("Enter")
    button = visit.page.get_by_role("button", name="Hide what was read")
    assert button.get_attribute("aria-pressed") is None
    visit.end()


def test_the_download_is_what_the_terminal_saves(browser: Any, url: str) -> None:
    """Whatever is in names, questions and answers."""
    visit = Visit(browser, url)
    exchanges = [Exchange(text, tuple(TEXTS), Reply(text=text)) for text in TEXTS]
    turns = [{"names": each.pictures, "question": each.question, "answer": each.reply.text} for each in exchanges]
    visit.page.evaluate("(turns) => { state.turns = JSON.parse(turns); update(); }", json.dumps(turns))
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download").click()
    start = "\n**Question:**"
    expected = to_markdown("tiny", exchanges, {}).replace("\nunknown probability\n", "\nstopped by you\n")
    assert read(download).partition(start)[2] == expected.partition(start)[2]
    visit.end()


def test_a_server_with_a_key(browser: Any, parts: Any) -> None:
    with serving(*parts, key="sesame") as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        alert = page.get_by_role("alert")
        alert.get_by_text("needs a key").wait_for()
        page.get_by_label("Key of this server").fill("wrong")
        page.keyboard.press("Enter")
        alert.get_by_text("is not that").wait_for()
        page.get_by_label("Key of this server").fill("sesame")
        page.keyboard.press("Enter")
        page.locator("#versions:not(:empty)").wait_for()
        assert page.get_by_role("alert").is_hidden()
        assert page.locator("#key").is_hidden()
        context.close()
