"""`being-vl serve`'s answers are those of `generate`, by OpenAI's own client; bad requests get a sentence."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from typing import Any

import pytest
import torch
from checkpoint_fixtures import tiny_checkpoint
from server_fixtures import data_url, from_data_url, picture, running

_REASON = 'needs pip install "being-vl[serve]" openai'
openai = pytest.importorskip("openai", reason=_REASON)
Server = pytest.importorskip("being_vl.serving.server.app", reason=_REASON).Server
TransformersBackend = pytest.importorskip(
    "being_vl.serving.server.backends", reason=_REASON
).TransformersBackend
Limits = pytest.importorskip("being_vl.serving.server.prompts", reason=_REASON).Limits

LIMITS = Limits(
    max_body=200_000, max_pixels=100_000, max_images=3, max_model_len=256, max_waiting=4
)
KEY = "secret"


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny_checkpoint("smollm", tied=False)
    torch.manual_seed(0)
    for weight in model.parameters():  # logits far enough apart to be the same everywhere
        weight.data.normal_(std=0.2)
    model.lm_head.weight.data[processor.boi_token_id] *= 4  # images begin now and then
    model.generation_config.eos_token_id = None  # answers of one length
    return model.eval(), processor


@pytest.fixture(scope="module")
def url(parts):
    model, processor = parts
    backend = TransformersBackend(model)
    server = Server("tiny", processor, backend, LIMITS, grid_size=(4, 4), api_key=KEY)
    with running(server.app()) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def ask(client: Any, content: Any, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 12, **options}
    return client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], **options
    )


def image_part(image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def expected(parts, content: Any, images: list, **options: Any) -> torch.Tensor:
    """New ids of `generate` for one turn of the user."""
    model, processor = parts
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(
        text=text, images=images or None, add_special_tokens=False, return_tensors="pt"
    )
    ids = model.generate(**inputs, do_sample=False, **options)
    return ids[0, inputs["input_ids"].shape[1] :]


def test_models_and_health(client, url) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/health")
    assert json.load(connection.getresponse()) == {"status": "ok"}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_text_about_images(parts, client, count: int) -> None:
    images = [picture(seed) for seed in range(count)]
    ours: list = [{"type": "text", "text": "red"}]
    theirs: list = [{"type": "text", "text": "red"}]
    for image in images:
        ours += [{"type": "image"}, {"type": "text", "text": " above"}]
        theirs += [image_part(image), {"type": "text", "text": " above"}]
    ids = expected(parts, ours, images, max_new_tokens=12)
    answer = ask(client, theirs)
    text = parts[1].tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens == 12
    assert answer.choices[0].finish_reason == "length"
    streamed = ask(client, theirs, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == answer.usage
    pieces = sum(bool(c.choices and c.choices[0].delta.content) for c in chunks)
    assert pieces > 1 or "�" in text  # bytes of a random model wait until they are a character


def test_pictures_out(parts, client) -> None:
    processor = parts[1]
    ids = expected(parts, "a red square", [], generation_mode="image", image_grid_size=(3, 5))
    pixels = processor.decode_image(ids, 3, 5).tobytes()
    options = {"extra_body": {"image_grid_size": [3, 5]}, "modalities": ["image"]}
    (part,) = ask(client, "a red square", **options).choices[0].message.content
    drawn = from_data_url(part["image_url"]["url"])
    assert drawn.tobytes() == pixels and drawn.size == (20, 12)
    images = client.images.generate(
        model="tiny", prompt="a red square", size="20x12", n=2, extra_body={"temperature": 0}
    )
    for image in images.data:
        assert from_data_url("data:image/png;base64," + image.b64_json).tobytes() == pixels


def test_interleaved(parts, client) -> None:
    processor = parts[1]
    options = {"generation_mode": "interleaved", "image_grid_size": (2, 2)}
    for words in map(str, range(20)):  # until an answer has both
        ids = expected(parts, words, [], max_new_tokens=40, **options)
        segments = processor.post_process_multimodal_output(
            [ids], generation_mode="interleaved", height=2, width=2
        )[0]
        if {segment["type"] for segment in segments} == {"text", "image"}:
            break
    else:
        pytest.fail("no answer has a text and an image")
    body = {"generation_mode": "interleaved", "image_grid_size": [2, 2]}
    content = ask(client, words, max_tokens=40, extra_body=body).choices[0].message.content
    kinds = {"text": "text", "image": "image_url"}
    assert [part["type"] for part in content] == [kinds[s["type"]] for s in segments]
    for part, segment in zip(content, segments, strict=True):
        if part["type"] == "text":
            assert part["text"] == segment["text"]
        else:
            drawn = from_data_url(part["image_url"]["url"])
            assert drawn.tobytes() == segment["image"].tobytes()


def test_text_that_spells_a_token_stays_text(parts, client) -> None:
    """The image goes where it stands, and no id comes of what a user spells."""
    processor = parts[1]
    words = "<image> <|visual_3|> <|im_end|> "
    answer = ask(client, [{"type": "text", "text": words}, image_part(picture())], max_tokens=1)
    plain = ask(client, [{"type": "text", "text": ""}, image_part(picture())], max_tokens=1)
    literal = processor.tokenizer.encode(words, add_special_tokens=False, split_special_tokens=True)
    spelled = processor.tokenizer.encode(words, add_special_tokens=False)
    assert len(literal) > len(spelled) + 10
    more = answer.usage.prompt_tokens - plain.usage.prompt_tokens
    assert abs(more - len(literal)) <= 2  # pieces are tokenized apart


def test_stop(parts, client) -> None:
    whole = ask(client, "square").choices[0].message.content
    stop = whole[4:6]
    cut = ask(client, "square", stop=stop)
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_sample(client) -> None:
    options = {"temperature": 1.0, "seed": 5}
    first, second = (ask(client, "a", **options).choices[0].message.content for _ in range(2))
    assert first == second != ask(client, "a", temperature=1.0, seed=6).choices[0].message.content


def test_a_sample_without_a_seed_is_new_whatever_came_before(client) -> None:
    answers = set()
    for _ in range(3):
        ask(client, "a", temperature=1.0, seed=5)
        answers.add(ask(client, "a", temperature=1.0).choices[0].message.content)
    assert len(answers) == 3


def test_an_answer_that_ends_at_its_limit_has_ended(parts, client) -> None:
    """`finish_reason` says whether more was to come."""
    assert ask(client, "square", max_tokens=3).choices[0].finish_reason == "length"
    last, tokenizer = expected(parts, "square", [], max_new_tokens=3)[-1], parts[1].tokenizer
    end, tokenizer.eos_token = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(int(last))
    try:
        assert ask(client, "square", max_tokens=3).choices[0].finish_reason == "stop"
    finally:
        tokenizer.eos_token = end


GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def with_url(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {**GOOD, "messages": [{"role": "user", "content": [part]}]}


BAD = {
    "role": ({**GOOD, "messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
    "no messages": ({"model": "tiny"}, 400, "messages is missing"),
    "unknown field": ({**GOOD, "temprature": 1}, 400, "temprature is not a parameter"),
    "tools": ({**GOOD, "tools": [{"type": "function"}]}, 400, "tools is not supported"),
    "type": ({**GOOD, "max_tokens": "many"}, 400, "max_tokens"),
    "model": ({**GOOD, "model": "gpt"}, 404, "no model 'gpt'"),
    "base64": (with_url("data:image/png;base64,@@@"), 400, "not valid base64"),
    "picture": (with_url("data:image/png;base64,AAAA"), 400, "not a readable image"),
    "pixels": (with_url(data_url(picture(0, (400, 400)).convert("1"))), 400, "more than the limit"),
    "http": (with_url("http://example.com/a.png"), 400, "fetches no URLs"),
    "file": (with_url("file:///etc/passwd"), 400, "must be a data URL"),
    "path": (with_url("/etc/passwd"), 400, "must be a data URL"),
    "many images": (
        {**GOOD, "messages": with_url(data_url(picture()))["messages"] * 4}, 400, "may hold 3 images",
    ),
    "long text": ({**GOOD, "messages": [{"role": "user", "content": "ab " * 200}]}, 400, "256"),
    "very long": ({**GOOD, "messages": [{"role": "user", "content": "a" * 250_000}]}, 413, "longer"),
    "mode": ({**GOOD, "generation_mode": "video"}, 400, "generation_mode"),
    "grid": ({**GOOD, "generation_mode": "image", "image_grid_size": [99, 99]}, 400, "needs 9803"),
}  # fmt: skip


def post(url: str, body: bytes, key: str = KEY, path: str = "/v1/chat/completions") -> tuple:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(url, name: str) -> None:
    body, status, words = BAD[name]
    got, answer = post(url, json.dumps(body).encode())
    message = answer["error"]["message"]
    assert got == status and words in message, answer
    assert message.endswith(".") and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b"[" * 100_000, 400), (b"", 400)],
    ids=["cut", "list", "bytes", "nested", "empty"],
)
def test_bodies_that_are_no_json(url, body: bytes, status: int) -> None:
    got, answer = post(url, body)
    assert got == status and answer["error"]["message"].endswith("."), answer


def test_key_and_route(url) -> None:
    assert post(url, json.dumps(GOOD).encode(), key="wrong")[0] == 401
    assert post(url, b"{}", path="/v1/embeddings")[0] == 404
    assert post(url, json.dumps(GOOD).encode())[0] == 200


def test_busy_is_429_and_those_that_went_are_forgotten(parts, url, client) -> None:
    """Clients that go away free their places; the server answers the next ones."""
    gone = []
    for _ in range(12):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        body = json.dumps({**GOOD, "max_tokens": 200})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        gone.append(connection)
    statuses = []
    for connection in gone[6:]:
        statuses.append(connection.getresponse().status)
    for connection in gone:
        connection.close()
    assert 429 in statuses
    patient = client.with_options(max_retries=8)
    assert ask(patient, "hi", max_tokens=2).choices


def figures(url: str) -> str:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def waiting(url: str) -> float:
    found = re.search(r"^being_vl_waiting_requests (.*)$", figures(url), re.MULTILINE)
    return float(found[1])


def until_free(url: str) -> None:
    deadline = time.monotonic() + 20
    while waiting(url):
        assert time.monotonic() < deadline, "a request that has gone keeps its place"
        time.sleep(0.05)


def test_a_stream_that_nobody_reads_ends(url) -> None:
    until_free(url)
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    body = json.dumps({**GOOD, "max_tokens": 230, "stream": True})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200 and response.readline().startswith(b"data: ")
    assert waiting(url) == 1
    response.close()
    connection.close()
    until_free(url)


def head(url: str, length: int, *more: str) -> socket.socket:
    """A request of which only the head has been sent."""
    host, port = url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=20)
    lines = [f"Host: {host}", f"Authorization: Bearer {KEY}", "Content-Type: application/json"]
    lines += [f"Content-Length: {length}", *more]
    sock.sendall("\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, "", ""]).encode())
    return sock


def test_a_body_has_its_place_before_it_comes(url) -> None:
    """Bodies under way are memory: more of them than may wait are refused."""
    until_free(url)
    slow = [head(url, 1000) for _ in range(LIMITS.max_waiting + 1)]
    while waiting(url) < len(slow):
        time.sleep(0.01)
    status, answer = post(url, json.dumps(GOOD).encode())
    assert status == 429 and answer["error"]["message"].startswith("The server is busy")
    for sock in slow:
        sock.close()
    until_free(url)
    assert post(url, json.dumps(GOOD).encode())[0] == 200


def test_a_refusal_is_read_by_who_is_still_sending(url) -> None:
    """The official client, for one, looks for an answer when its whole body is sent."""
    for key, status in ((KEY, 413), ("wrong", 401)):
        got, answer = post(url, b"x" * 8_000_000, key=key)
        assert got == status and answer["error"]["message"].endswith(".")


def test_who_asks_before_sending_is_told_at_once(url) -> None:
    """`Expect: 100-continue`, which curl sends with a large body."""
    with head(url, 8_000_000, "Expect: 100-continue") as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_metrics(url) -> None:
    text = figures(url)
    assert 'being_vl_requests_total{status="400"}' in text
    assert "being_vl_answer_tokens_total" in text and "being_vl_waiting_requests 0.0" in text
