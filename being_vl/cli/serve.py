"""`being-vl serve`: a checkpoint behind OpenAI's API, images in and images out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from ..files import reading
from .loading import check_part
from .options import add, add_about, flag, options
from .parsing import Parser

_KEY = "BEING_VL_API_KEY"


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        "Serve a checkpoint over HTTP as OpenAI's API has it: chat completions with images in, streamed text and "
        "images out, /v1/images/generations, /v1/models, /health and /metrics. It needs pip install "
        f'"being-vl[serve]". An API key that clients must send is read from the environment, {_KEY}.'
    )
    add_about(parser, "checkpoint")
    options(
        parser,
        ("backend", Literal["transformers", "vllm"], "transformers",
         "what generates: transformers, one answer at a time, or vLLM"),
        ("vllm-url", str, None,
         "with --backend vllm: a server's API, http://localhost:8000/v1; default: started here", "URL"),
        ("host", str, "127.0.0.1", "0.0.0.0 serves the network too"),
        ("port", PositiveInt, 8080, "to listen on"),
        ("served-model-name", str, None, "default: the checkpoint's folder", "NAME"),
    )  # fmt: skip
    add(parser, "device", "dtype")
    limits = parser.rare("limits of requests")
    options(
        limits,
        ("max-model-len", PositiveInt, None, "tokens; default: the model's"),
        ("max-body", PositiveInt, 20_000_000, "bytes"),
        ("max-image-pixels", PositiveInt, 2**24, "of an image, as it comes"),
        ("max-images", PositiveInt, 16, "in a request"),
        ("max-waiting", PositiveInt, 64, "more are told 429"),
        ("timeout", PositiveFloat, 300.0, "seconds to an answer"),
    )
    flag(limits, "allow-image-urls", "fetch http(s) images from public addresses")
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ImportError: the packages of the extra `serve`, or vLLM, are missing.
        ValueError, OSError: the checkpoint does not load, or the port is taken.
    """
    try:
        import uvicorn

        from ..serving.server.app import Server
    except ImportError as error:
        raise ImportError(f'serving needs pip install "being-vl[serve]" ({error})') from None
    from transformers import AutoConfig

    from ..processing.processing_being_vl import BeingVLProcessor
    from ..serving.server.prompts import Limits

    check_part("checkpoint", args.checkpoint)
    if (api_key := os.environ.get(_KEY)) == "":
        raise ValueError(f"the environment's {_KEY} is empty: give it a key, or unset it")
    if args.vllm_url is not None and args.backend != "vllm":
        raise ValueError("--vllm-url needs --backend vllm")
    with reading(args.checkpoint):
        config = AutoConfig.from_pretrained(args.checkpoint)
        limits = Limits(
            max_body=args.max_body,
            max_pixels=args.max_image_pixels,
            max_images=args.max_images,
            max_model_len=args.max_model_len or config.max_position_embeddings,
            allow_image_urls=args.allow_image_urls,
            timeout=args.timeout,
            max_waiting=args.max_waiting,
        )
        processor = BeingVLProcessor.from_pretrained(args.checkpoint, vq_device=_device(args))
        processor.tokenizer.check_rows(config.vocab_size)
        server = Server(
            args.served_model_name or Path(args.checkpoint).name,
            processor,
            _backend(args, limits, config),
            limits,
            grid_size=config.image_grid_size,
            api_key=api_key,
        )
    uvicorn.run(
        server.app(),
        host=args.host,
        port=args.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(args.timeout) + 1,
    )
    return 0


def _device(args: Namespace) -> str:
    import torch

    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _backend(args: Namespace, limits: Any, config: Any) -> Any:
    if args.backend == "transformers":
        from ..models.loading import load_language_model
        from ..serving.server.backends import TransformersBackend

        model = load_language_model(args.checkpoint, dtype=args.dtype).to(_device(args))
        return TransformersBackend(model)
    from ..serving.server.vllm_backend import LocalVLLM, RemoteVLLM

    eoi = config.eoi_token_id
    if args.vllm_url is not None:
        key = os.environ.get("VLLM_API_KEY")
        return RemoteVLLM(args.vllm_url, eoi_token_id=eoi, api_key=key)
    arguments = {"dtype": args.dtype, "max_model_len": limits.max_model_len}
    return LocalVLLM(args.checkpoint, eoi_token_id=eoi, arguments=arguments)
