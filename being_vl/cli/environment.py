"""this machine → versions, devices, and what is known to break.

Source: the `env` commands of transformers and accelerate. It differs in that it also tries what breaks in
practice: a torchvision built for another torch, which an extra can bring along, and after which transformers
does not import its processors; and a timm without torchvision, with which accelerate does not start.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from typing import Any

PACKAGES = (
    "being-vl",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "numba",
    "numpy",
    "pillow",
    "peft",
    "trl",
    "deepspeed",
    "flash-attn",
    "lmms-eval",
    "pycocoevalcap",
    "torchmetrics",
    "easy-vqa",
)
LMMS_EVAL_TESTED = "0.7.3"


def describe() -> dict[str, Any]:
    """`python`, `platform`, `packages` (name → version or None), `devices`, `java`, `problems`."""
    import torch

    devices = [
        f"cuda:{n} {torch.cuda.get_device_name(n)}, "
        f"{torch.cuda.get_device_properties(n).total_memory / 2**30:.0f} GiB"
        for n in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    packages = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "devices": [*devices, f"cpu, {torch.get_num_threads()} threads"],
        "java": shutil.which("java"),
        "problems": [
            *filter(None, (torchvision_problem(), timm_problem(), _lmms_eval_problem(packages)))
        ],
    }


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
