"""a browser → tokens and answers: the page of `being-vl demo`.

Source: gradio's blocks. Nothing of the page comes from elsewhere: no analytics, no fonts, no share link.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
try:
    import gradio as gr
except ImportError as missing:
    raise ImportError('the demo needs gradio: pip install "being-vl[demo]"') from missing

from ..bpe.drawing import enlarged
from ..processing.processing_being_vl import BeingVLProcessor
from ..quantizers.image_loading import load_image
from .conversation import Chat, Speaker
from .tokens import LABELS, MIN_SIDE, view_tokens

# Of growing tokens: from grey to red. Fixed, so that a size has one colour whatever the image.
_HUES = ("#9e9e9e", "#5c9ded", "#3fb9a3", "#7bc043", "#f2c335", "#ef8a3c", "#d94545")
_COLOURS = dict(zip(LABELS, _HUES, strict=True))
_THEME_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}


def build_page(speaker: Speaker, title: str) -> gr.Blocks:
    """The page: a tab for an image's tokens, a tab for talking. No button of it shares anything."""
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        with gr.Tab("Tokens"):
            _tokens_tab(speaker.processor)
        with gr.Tab("Chat"):
            _chat_tab(speaker)
    return page


def launch_page(page: gr.Blocks, *, host: str, port: int | None, open_browser: bool) -> None:
    """Serve a page until it is interrupted."""
    page.launch(
        server_name=host, server_port=port, inbrowser=open_browser, share=False,
        theme=gr.themes.Default(**_THEME_FONTS),
    )  # fmt: skip


def _literal(text: str) -> str:
    """Text whose tags stay visible: the chat is drawn as Markdown, in which `<image>` would vanish."""
    return html.escape(text, quote=False)


def _message(error: Exception) -> gr.Error:
    """An error as a message on the page, which draws it as HTML."""
    return gr.Error(_literal(" ".join(str(error).split()) or type(error).__name__))


def _tokens_tab(processor: BeingVLProcessor) -> None:
    bpe = processor.tokenizer.image_bpe

    def look(image: Image.Image | None, num_merges: float) -> tuple[Any, ...]:
        """A new image: quantize it, reconstruct it, draw its tokens."""
        if image is None:
            return None, None, None, ""
        try:
            (codes,) = processor.quantize([image])
        except Exception as error:  # whatever an image or a quantizer raises, a person reads it
            raise _message(error) from error
        seen = codes, processor.reconstruct(codes)
        return seen, enlarged(seen[1], MIN_SIDE), *show(seen, num_merges)

    def show(seen: tuple[np.ndarray, Image.Image] | None, num_merges: float) -> tuple[Any, str]:
        """The same image (its codes and its reconstruction) with another number of merges."""
        if seen is None:
            return None, ""
        view = view_tokens(bpe, seen[0], int(num_merges), seen[1])
        codes, tokens = view.num_codes, view.num_tokens
        text = f"**{codes}** codes, **{tokens}** tokens, {codes / tokens:.2f} codes a token"
        return (view.image, view.areas), text

    seen = gr.State()
    with gr.Row():
        image = gr.Image(
            type="pil", image_mode="RGB", label="Image", sources=["upload", "clipboard"],
            buttons=["fullscreen"],
        )  # fmt: skip
        reconstruction = gr.Image(
            label="Reconstruction from its codes", interactive=False,
            buttons=["download", "fullscreen"],
        )  # fmt: skip
        tokens = gr.AnnotatedImage(label="Tokens, by their number of codes", color_map=_COLOURS)
    merges = gr.Slider(0, bpe.num_merges, value=bpe.num_merges, step=1, label="Merges")
    numbers = gr.Markdown(elem_id="numbers")
    image.change(look, [image, merges], [seen, reconstruction, tokens, numbers])
    merges.release(show, [seen, merges], [tokens, numbers])


def _chat_tab(speaker: Speaker) -> None:
    def answer(
        message: dict[str, Any], shown: list[dict[str, Any]], talk: Chat | None
    ) -> Iterator[tuple[Any, ...]]:
        """One turn: the answer grows in the chat as it comes."""
        talk = talk or Chat()
        text = message["text"].strip() or "What is in the image?"
        said = ""
        try:
            images = [load_image(path) for path in message["files"]]
            talk.waiting = [speaker.look(image) for image in images]
            asked = [*(gr.Image(image, buttons=["fullscreen"]) for image in images), _literal(text)]
            shown = [*shown, *({"role": "user", "content": content} for content in asked)]
            with closing(speaker.ask(talk, text)) as pieces:
                for piece in pieces:
                    said += piece
                    yield None, [*shown, {"role": "assistant", "content": _literal(said)}], talk
        except Exception as error:  # whatever an image or a model raises, a person reads it
            raise _message(error) from error
        yield None, [*shown, {"role": "assistant", "content": _literal(said)}], talk

    talk = gr.State()
    chat = gr.Chatbot(label="Chat", height=480, buttons=["copy"])
    box = gr.MultimodalTextbox(
        file_types=["image"], placeholder="Ask; attach an image", show_label=False
    )
    box.submit(answer, [box, chat, talk], [box, chat, talk])
    chat.clear(lambda: None, None, talk)
