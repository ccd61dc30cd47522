"""The API, as OpenAI's client uses it and as nobody should."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch

from pallava.model import ask as ask_model
from pallava.serving.bounds import Connection
from pallava.serving.chat_model import ChatModel
from pallava.serving.reading import read_image
from tests.tiny.server import ask, body, data_url, picture, serving

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def url(parts: Any) -> Iterator[str]:
    with serving(*parts, max_mb=4, max_images=4, max_pixels=200_000, max_batch=4, max_waiting=32) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def post(url: str, json: Any = None, **more: Any) -> httpx.Response:
    return httpx.post(url + PATH, json=json, timeout=60, **more)


def check_sound(url: str, parts: Any) -> None:
    """The next good request is answered, and rightly."""
    answer = post(url, body()).json()["choices"][0]["message"]["content"]
    assert answer == ask_model(*parts, picture(), "what is shown ?", max_new_tokens=6)


def check_error(answer: httpx.Response, *statuses: int) -> str:
    """An error in OpenAI's form, in one sentence."""
    assert answer.status_code in (statuses or (400,)), answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert 0 < len(error["message"]) < 320
    return error["message"]


def test_answers_are_those_of_asking_in_python(client: openai.OpenAI, parts: Any) -> None:
    """Without and with images, two of them, and in a second turn."""
    for images in ([], [0], [1, 2]):
        messages: list[Any] = [ask("what is shown ?", *images)]
        given: Any = {"model": "tiny", "messages": messages, "max_tokens": 9}
        first = client.chat.completions.create(**given)
        text = first.choices[0].message.content
        pictures = [picture(number) for number in images] or None
        assert text == ask_model(*parts, pictures, "what is shown ?", max_new_tokens=9)
        messages += [{"role": "assistant", "content": text}, ask("many nuclei ?")]
        second = client.chat.completions.create(**given)
        history = [("what is shown ?", text)]
        expected = ask_model(*parts, pictures, "many nuclei ?", history=history, max_new_tokens=9)
        assert second.choices[0].message.content == expected
        details = second.usage and second.usage.prompt_tokens_details
        assert details is not None
        assert first.usage is not None
        assert details.cached_tokens is not None
        assert details.cached_tokens >= first.usage.prompt_tokens - 1


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    given: Any = {"model": "tiny", "messages": [ask("what is shown ?", 0)], "max_tokens": 12}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].model_dump()["pallava"]["probability"] == pytest.approx(
        whole.model_dump()["pallava"]["probability"], rel=1e-3
    )


def test_usage_counts_visual_tokens(client: openai.OpenAI, parts: Any) -> None:
    model, processor = parts
    for images in ([], [0], [0, 1]):
        answer = client.chat.completions.create(model="tiny", messages=[ask("what ?", *images)], max_tokens=2)  # type: ignore[list-item]
        inputs = processor("what ?", [picture(number) for number in images] or None)
        fused = model.fuse(
            inputs["input_ids"],
            model.encode_images(inputs["pixel_values"], inputs["tiles_per_image"]) if images else None,
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == fused["inputs_embeds"].shape[1]
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2


def test_many_at_once_are_answered_as_alone(url: str, parts: Any) -> None:
    questions = ["what is shown ?", "yes ?", "many nuclei present ?", "describe the stain"] * 6
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda pair: post(url, body(pair[1], pair[0] % 3)), enumerate(questions)))
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        expected = ask_model(*parts, picture(number % 3), question, max_new_tokens=6)
        assert answer.json()["choices"][0]["message"]["content"] == expected
    assert "pallava_batch_size_bucket" in httpx.get(url + "/metrics").text


def test_words_can_be_drawn_and_the_seed_decides_them(url: str) -> None:
    def draw(seed: int) -> str:
        return post(url, body(temperature=1.5, seed=seed, max_tokens=12)).json()["choices"][0]["message"]["content"]

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_next_to_no_temperature_is_none(url: str) -> None:
    greedy, *others = (post(url, body(temperature=each)).json()["choices"] for each in (0, 1e-4, 1e-40, 5e-324))
    assert others == [greedy] * 3
    assert post(url, body(temperature=1e-3, top_p=5e-324)).status_code == 200


def test_stop_texts_end_an_answer(url: str) -> None:
    whole = post(url, body(max_tokens=12)).json()["choices"][0]["message"]["content"]
    word = whole.split(" ")[2]
    answer = post(url, body(max_tokens=12, stop=[" " + word])).json()["choices"][0]
    assert answer["message"]["content"] == whole[: whole.index(" " + word)]
    assert answer["finish_reason"] == "stop"


def test_what_the_connector_read(url: str, parts: Any) -> None:
    found = httpx.post(url + "/v1/reading", json={"image": {"url": data_url(1)}}, timeout=60).json()
    assert sum(map(sum, found["tiles"])) == pytest.approx(1, abs=1e-4)
    assert sum(map(sum, found["tokens"])) == pytest.approx(1, abs=1e-4)
    assert (len(found["tiles"]), len(found["tiles"][0])) == (found["rows"], found["columns"])
    left, top, width, height = found["place"]
    assert width <= found["canvas"][0]
    assert (left, top) == ((found["canvas"][0] - width) // 2, (found["canvas"][1] - height) // 2)


def test_the_small_routes(url: str) -> None:
    assert httpx.get(url + "/health").json() == {"status": "ok"}
    (model,) = httpx.get(url + "/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert {"pallava", "torch", "transformers", "language model"} <= set(model["pallava"]["facts"])
    page = httpx.get(url + "/")
    assert "</html>" in page.text
    assert "http" not in page.text.replace("https", "http").lower(), "the page names no other place"
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(url + "/v1/models/tiny").json() == model
    assert "'tiny'" in check_error(httpx.get(url + "/v1/models/other"), 404)
    assert "/nowhere" in check_error(httpx.get(url + "/nowhere"), 404)
    assert f"GET {PATH}" in check_error(httpx.get(url + PATH), 405)
    counts = httpx.get(url + "/metrics").text
    assert 'pallava_requests_total{path="other",status="404"}' in counts


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def with_url(url: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what ?"}]
    return {"messages": [{"role": "user", "content": content}]}


IMAGE_AS_TEXT = {"type": "image_url", "image_url": "data:,"}
BAD = {
    "not an image": (body("what ?", 0, b"no picture"), "image 2: "),
    "an empty image": (body("what ?", b""), "empty"),
    "a bomb": (body("what ?", bomb(50_000)), "200000 are allowed"),
    "too large": (body("what ?", picture().resize((600, 500))), "200000 are allowed"),
    "no base64": (with_url("data:image/png;base64,%%%"), "cannot read"),
    "a file": (with_url("file:///etc/passwd"), "data: URL"),
    "a path": (with_url("/etc/passwd"), "data: URL"),
    "a URL as a text": (
        body() | {"messages": [{"role": "user", "content": [IMAGE_AS_TEXT]}]},
        "image_url must be a JSON",
    ),
    "a part of another kind": (
        body() | {"messages": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "'type'",
    ),
    "no question": (body(" "), "question"),
    "many stops": (body(stop=list("abcde")), "at most 4"),
    "a private network": (with_url("http://169.254.169.254/latest/meta-data"), "--allow-url"),
    "another server": (with_url("https://example.org/a.png"), "--allow-url"),
    "a broken URL": (with_url("http://[::1"), "data: URL"),
    "too many images": (body("what ?", *range(5)), "at most 4"),
    "ten thousand images": (with_url("x") | {"messages": [ask("a")] * 200}, None),
    "negative": (body(max_tokens=-1), "max_tokens"),
    "too hot": (body(temperature=2.5), "temperature"),
    "no numbers": (body(temperature="NaN"), "temperature"),
    "several answers": (body(n=3), "n"),
    "tools": (body(tools=[{"type": "function"}]), "tools"),
    "no messages": ({"messages": []}, "messages"),
    "answers alone": ({"messages": [{"role": role, "content": "a"} for role in ("system", "assistant")]}, "question"),
    "an answer at the end": ({"messages": [ask("a", 0), {"role": "assistant", "content": "b"}]}, "question"),
    "system in between": ({"messages": [ask("a"), {"role": "system", "content": "b"}]}, "system"),
    "another role": ({"messages": [{"role": "tool", "content": "b"}]}, "role"),
    "half a character": ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages.0.content"),
    "half a character in a name": (body(**{"a\ud800": 1}), None),
    "a misspelt option": (body(temprature=1), "did you mean 'temperature'?"),
    "a NUL": ({"messages": [{"role": "user", "content": "a\0"}]}, "encoded"),
    "a marker without its image": ({"messages": [{"role": "user", "content": "<image> what ?"}]}, "image"),
    "too long": ({"messages": [{"role": "user", "content": "what " * 50_000}]}, "room"),
    "a list": ([1, 2], "the body must be a JSON object"),
    "text": ("hello", "the body must be a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_one_sentence(url: str, parts: Any, name: str) -> None:
    given, said = BAD[name]
    if name == "ten thousand images":
        given = {"messages": [ask("what ?", *[0] * 50)] * 200}
        assert check_error(post(url, given), 400, 413)
    else:
        message = check_error(post(url, content=json.dumps(given), headers={"Content-Type": "application/json"}))
        assert said is None or said in message
    check_sound(url, parts)


@pytest.mark.parametrize("content", [b"", b"{", b'{"messages": [\xff]}', b"[" * 100_000, b"null", b"1e999"])
def test_bodies_that_are_not_json(url: str, parts: Any, content: bytes) -> None:
    check_error(post(url, content=content, headers={"Content-Type": "application/json"}))
    check_sound(url, parts)


def test_a_body_that_is_too_large_is_not_read(url: str, parts: Any) -> None:
    """By its stated length, and without one."""
    large = bytes(100 << 20)
    for content in (large, (large[:65536] for _ in range(1600))):
        with suppress(
            httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError
        ):  # closed while we are still sending
            check_error(post(url, content=content, headers={"Content-Type": "application/json"}), 413)
    check_sound(url, parts)


def test_other_sites_cannot_use_a_visitors_browser(url: str) -> None:
    """A page elsewhere can send plain text, and resolve a name of its own to this machine; nothing else."""
    text = json.dumps(body())
    check_error(post(url, content=text, headers={"Content-Type": "text/plain"}), 415)
    check_error(post(url, content=text, headers={"Content-Type": "application/json", "Host": "evil.example"}), 403)
    answer = httpx.options(
        url + PATH, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in answer.headers


def test_a_key_is_demanded(parts: Any) -> None:
    with serving(*parts, key="sesame") as url:
        for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "sesame"}):
            check_error(post(url, body(), headers=given), 401)
            check_error(httpx.get(url + "/metrics", headers=given), 401)
        assert post(url, body(), headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert httpx.get(url + "/").status_code == httpx.get(url + "/health").status_code == 200


def count(url: str, name: str) -> float:
    return next(
        float(line.split()[1]) for line in httpx.get(url + "/metrics").text.splitlines() if line.startswith(name + " ")
    )


def wait_for(url: str, name: str, value: float) -> None:
    end = time.monotonic() + 30
    while count(url, name) != value:
        assert time.monotonic() < end, (name, count(url, name))
        time.sleep(0.02)


def slow(parts: Any, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> None:
    forward = parts[0].llm.forward

    def wait(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return forward(*args, **kwargs)

    monkeypatch.setattr(parts[0].llm, "forward", wait)
    monkeypatch.setattr(parts[0].generation_config, "eos_token_id", None)  # each answer takes all of its tokens


def test_a_client_that_leaves_frees_its_place(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*parts, max_batch=1, max_waiting=2, max_new_tokens=400) as url:
        slow(parts, monkeypatch)
        long = {**body(), "max_tokens": 400, "stream": True}
        with httpx.stream("POST", url + PATH, json=long, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            wait_for(url, "pallava_running", 1)
        start = time.monotonic()
        assert post(url, body()).status_code == 200
        assert time.monotonic() - start < 10, "400 tokens would take 20 seconds"
        with pytest.raises(httpx.ReadTimeout):  # and one whose answer comes whole
            httpx.post(url + PATH, json={**body(), "max_tokens": 400}, timeout=0.5)
        wait_for(url, "pallava_running", 0)


def test_time_and_a_client_that_leaves_end_the_opening_of_images(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so they do a reading that waits."""
    see, opened, done = ChatModel.see, list[Any](), list[Any]()
    monkeypatch.setattr(ChatModel, "see", lambda *args, **how: time.sleep(0.6) or opened.append(0) or see(*args, **how))
    monkeypatch.setattr(
        "pallava.serving.api.read_image", lambda *args: time.sleep(0.6) or done.append(0) or read_image(*args)
    )
    with serving(*parts, timeout=1) as url, ThreadPoolExecutor(4) as pool:
        assert "long" in check_error(post(url, body("what ?", 1, 2, 3, 4)), 503)
        assert 0 < len(opened) < 3
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + PATH, json=body("what ?", 1, 2, 3, 4), timeout=0.3)
        image = {"image": {"url": data_url(0)}}
        readings = [pool.submit(httpx.post, url + "/v1/reading", json=image, timeout=0.5) for _ in range(4)]
        assert all(isinstance(each.exception(), httpx.ReadTimeout) for each in readings)
        wait_for(url, "pallava_waiting", 0)
    assert len(opened) < 5
    assert len(done) < 3


@pytest.mark.parametrize("is_fault", [True, False])
def test_a_stream_that_fails_says_so_and_ends(parts: Any, monkeypatch: pytest.MonkeyPatch, is_fault: bool) -> None:
    """By a fault of the server's, or by numbers that are none; neither is written as JSON that nobody can read."""
    if is_fault:
        monkeypatch.setattr(ChatModel, "_weigh", lambda *args: 1 / 0)
    else:
        weight = parts[0].llm.model.norm.weight
        monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    with serving(*parts) as url:
        lines = [line for line in post(url, body(stream=True)).text.splitlines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        check_error(post(url, body()), 500 if is_fault else 503)
        check_error(post(url, body(temperature=1)), 500 if is_fault else 503)


def test_a_full_line_is_refused_and_one_who_waits_too_long(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(*parts, max_batch=1, max_waiting=2, timeout=2, max_new_tokens=400) as url,
        ThreadPoolExecutor(8) as pool,
    ):
        slow(parts, monkeypatch)
        long = {**body(), "max_tokens": 400}
        answers = [each.result() for each in [pool.submit(post, url, long) for _ in range(5)]]
        assert sorted(answer.status_code for answer in answers).count(200) >= 1
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["pallava"]["is_cut"]
            else:
                assert "again" in check_error(answer, 503)
        assert sum(answer.status_code == 503 for answer in answers) >= 2
        check_sound(url, parts)


def test_a_client_that_stops_reading(url: str, parts: Any) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stuck:
        content = json.dumps({**body(), "max_tokens": 300, "stream": True}).encode()
        lines = (
            f"POST {PATH} HTTP/1.1",
            f"Host: {host}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        )
        head = "\r\n".join([*lines, "", ""]).encode()
        stuck.sendall(head + content)
        check_sound(url, parts)
    with socket.create_connection((host, int(port))) as half:  # and one that stops sending
        half.sendall(head + content[:50])
        check_sound(url, parts)


def test_connections_that_say_nothing_lock_nobody_out(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are; and they end, also those whose head does not."""
    monkeypatch.setattr(Connection, "seconds", 0.5)
    with serving(*parts, max_batch=1, max_waiting=1) as url, ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        idle = [stack.enter_context(socket.create_connection((host, int(port)), 20)) for _ in range(40)]
        for each in idle[:20]:
            each.sendall(b"GET /health HTTP/1.1\r\n")
        assert httpx.get(url + "/health").status_code == 200
        check_sound(url, parts)
        for each in idle:
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""


def test_a_request_that_ends_the_server_waits_for_running_answers(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(*parts) as url:
            slow(parts, monkeypatch, 0.1)
            running = pool.submit(post, url, {**body(), "max_tokens": 20})
            wait_for(url, "pallava_running", 1)
        assert running.result().json()["usage"]["completion_tokens"] == 20


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_requests(url: str, parts: Any) -> None:
    """Of which half are bad, and many show a new image."""
    process = psutil.Process(os.getpid())

    def some(first: int, count: int) -> None:
        with httpx.Client(timeout=60) as client:
            for number in range(first, first + count):
                image = picture(number % 7).resize((100 + number % 90, 80))
                assert client.post(url + PATH, json=body("what ?", image, max_tokens=2)).status_code == 200
                assert client.post(url + PATH, json=body("what ?", b"x" * 50_000)).status_code == 400

    some(0, 100)
    before = process.memory_info().rss
    some(100, 500)
    assert process.memory_info().rss - before < 40 << 20
    check_sound(url, parts)


@pytest.mark.slow
def test_mutations_of_valid_requests(url: str, parts: Any, tmp_path: Path) -> None:
    """What the server's own description allows and what it does not, by schemathesis: never a fault of the server's."""
    command = [shutil.which("schemathesis"), "run", f"{url}/openapi.json", "--max-examples", "200", "--mode", "all"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command += ["--checks", checks, "--phases", "coverage,fuzzing", "--seed", "1", "--request-timeout", "60"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert int(re.search(r"(\d+) generated", result.stdout)[1]) > 500
    check_sound(url, parts)
