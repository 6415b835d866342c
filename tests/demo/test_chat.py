"""The session of `being-vl chat`: turns, pictures, errors that do not end it, pipes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fixtures import tiny_checkpoint
from PIL import Image
from rich.console import Console

from being_vl.demo.conversation import Chat, Speaker
from being_vl.demo.terminal import Session, typed_lines
from being_vl.hub.checkpoint import save_checkpoint

_ROOT = Path(__file__).parents[2]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(*tiny_checkpoint("llama-3"), max_new_tokens=6)


@pytest.fixture
def session(speaker: Speaker) -> Session:
    console = Console(file=io.StringIO(), highlight=False)
    return Session(speaker, console=console, errors=io.StringIO())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 16, 3), np.uint8)).save(path)
    return path


def whole_answer(speaker: Speaker, messages: list, codes: list) -> str:
    """What `generate` says to the whole conversation at once."""
    text = speaker.processor.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    inputs = speaker.processor(
        text=text, image_codes=codes or None, add_special_tokens=False, return_tensors="pt"
    )
    ids = speaker.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return speaker.processor.decode(new, skip_special_tokens=True)


def test_turns_are_those_of_generate(speaker: Speaker, image: Path) -> None:
    talk = Chat()
    codes = speaker.look(image)
    talk.waiting.append(codes)
    first = list(speaker.ask(talk, "What is in the picture?"))
    second = "".join(speaker.ask(talk, "Is it red?"))
    question = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}],
    }
    assert "".join(first) == whole_answer(speaker, [question], [codes])
    messages = [
        question,
        {"role": "assistant", "content": "".join(first)},
        {"role": "user", "content": "Is it red?"},
    ]
    assert second == whole_answer(speaker, messages, [codes])
    assert talk.messages[-1]["content"] == [{"type": "text", "text": second}]
    assert len(talk.codes) == 1 and not talk.waiting


def test_system_message_comes_first(speaker: Speaker) -> None:
    talk = Chat("Be brief.")
    list(speaker.ask(talk, "Hello"))
    messages, _ = talk.with_question("Again")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(speaker: Speaker) -> None:
    talk = Chat()
    pieces = speaker.ask(talk, "Hello")
    said = next(pieces)
    pieces.close()
    kept = talk.messages[-1]["content"][0]["text"]
    assert kept == said and len(talk.messages) == 2


def test_a_failure_leaves_the_conversation_as_it_was(speaker: Speaker, monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    talk = Chat()
    monkeypatch.setattr(speaker.model, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(speaker.ask(talk, "Hello"))
    assert talk.messages == []


def test_too_long_a_conversation_is_refused(speaker: Speaker) -> None:
    with pytest.raises(ValueError, match=r"the model takes 256: reset it"):
        list(speaker.ask(Chat(), "word " * 300))


def test_commands(session: Session, image: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    session.run(
        iter(
            [
                f"/image '{image}'",
                "What is it?",
                f"/draw {drawn} a square",
                "/help",
                "/reset",
                "",
                "/quit",
                "never",
            ]
        )
    )
    out = session.console.file.getvalue()
    assert session.errors.getvalue() == "" and session.failures == 0
    assert "(4×4 codes, " in out and "/draw FILE" in out and "a new conversation" in out
    assert Image.open(tmp_path / "drawn.png").size == (16, 16)
    assert session.conversation.messages == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image /no/such.png", "error: /no/such.png: no such file"),
        ("/image", "error: /image takes a path or a URL"),
        ("/dance", "error: no command /dance; /help lists them"),
        ("/draw", "error: /draw takes a file to write"),
        ("/draw /dev/null/x.png", "error: "),  # below what is no folder
        ("what is <image>", "placeholders"),
    ],
)
def test_errors_are_one_line_and_the_session_goes_on(
    session: Session, line: str, message: str
) -> None:
    session.run(iter([line, "Hello"]))
    errors = session.errors.getvalue()
    assert message in errors and errors.count("\n") == 1
    assert session.failures == 1
    assert [turn["role"] for turn in session.conversation.messages] == ["user", "assistant"]


def test_a_file_that_is_no_picture(session: Session, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    session.handle(f"/image {tmp_path / 'text.png'}")
    assert "not a readable image" in session.errors.getvalue()
    assert session.conversation.waiting == []


def test_a_url_that_the_user_gives(session: Session, image: Path) -> None:
    handler = partial(QuietHandler, directory=str(image.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        session.handle(f"/image {address}/a%20picture.png")
        session.handle(f"/image {address}/none.png")
        server.shutdown()
    assert np.array_equal(session.conversation.waiting, [session.speaker.look(image)])
    error = session.errors.getvalue()
    assert f"{address}/none.png: no image can be read there" in error and error.count("\n") == 1


def test_typing_ends_with_the_input(monkeypatch) -> None:
    typed = iter(["one", "two"])

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert list(typed_lines(Console(file=io.StringIO()))) == ["one", "two"]


def test_piped(tmp_path: Path, image: Path) -> None:
    """Answers on standard output alone; a failure is the exit status."""
    save_checkpoint(*tiny_checkpoint("llama-3"), tmp_path / "checkpoint")
    command = ["chat", "checkpoint", "--image", str(image), "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "being_vl", *command],
        input="What is it?\n/image none.png\n/draw out.png\n",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: none.png: no such file"]
    assert "(4×4 codes" in done.stdout and "\x1b" not in done.stdout
    assert (tmp_path / "out.png").exists()
