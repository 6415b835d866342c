"""captions and references → CIDEr, ROUGE-L, METEOR, SPICE.

Source: pycocoevalcap, the COCO caption evaluation, which this calls: its numbers are the ones that papers give.
It tokenizes with Stanford's PTBTokenizer, so all of it needs Java. SPICE would download its parts while it
runs; here it takes the user's jar or is left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def require(spice_jar: str | None = None) -> None:
    """Check that what captions need is there, before any are made."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "captions are scored by pycocoevalcap, which is not installed: pip install being-vl[caption]"
        ) from error
    if shutil.which("java") is None:
        raise FileNotFoundError(
            "captions need Java on the PATH (a JRE of version 8 or later): their tokenizer and METEOR run on it"
        )
    if spice_jar is not None and not Path(spice_jar).is_file():
        raise FileNotFoundError(f"spice_jar: {spice_jar}: no such file")


def caption_scores(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    spice_jar: str | None = None,
) -> dict[str, float]:
    """`CIDEr`, `ROUGE-L` and `METEOR`, and `SPICE` where a jar is given; times 100, as papers give them.

    Captions and references (by people) go by image; `spice_jar` is the path of spice-1.0.jar, its `lib/` with
    Stanford CoreNLP beside it.
    """
    require(spice_jar)
    if not captions:
        raise ValueError("scores need at least one caption, got none")
    lacking = [image for image in captions if not references.get(image)]
    if lacking:
        raise ValueError(f"image {lacking[0]!r} has no references")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    made = _tokenize({image: [text] for image, text in captions.items()})
    given = _tokenize({image: list(references[image]) for image in captions})
    scorers = {"CIDEr": Cider(), "ROUGE-L": Rouge(), "METEOR": Meteor()}
    scores = {
        name: 100 * float(scorer.compute_score(given, made)[0]) for name, scorer in scorers.items()
    }
    if spice_jar is not None:
        scores["SPICE"] = 100 * _spice(Path(spice_jar), given, made)
    return scores


def _tokenize(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """By the PTBTokenizer, which drops a last line that is empty: a full stop stands in, and falls away."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {
        image: [{"caption": " ".join(text.split()) or "."} for text in entries]
        for image, entries in texts.items()
    }
    tokenized = PTBTokenizer().tokenize(lines)
    if any(len(tokenized.get(image, ())) != len(entries) for image, entries in texts.items()):
        raise OSError("the PTBTokenizer did not return a line for each caption; is Java working?")
    return tokenized


def _spice(
    jar: Path, references: Mapping[str, list[str]], captions: Mapping[str, list[str]]
) -> float:
    """Mean F-score over the images, in [0, 1]."""
    entries = [
        {"image_id": image, "test": text, "refs": references[image]}
        for image, (text,) in captions.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "captions.json"), Path(folder, "spice.json")
        source.write_text(json.dumps(entries), "utf-8")
        command = ["java", "-Xmx8G", "-jar", str(jar.resolve()), str(source)]
        command += ["-out", str(target), "-subset", "-silent"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=jar.resolve().parent)
        if run.returncode or not target.is_file():
            raise OSError(f"{jar}: SPICE failed: {run.stderr.strip()[-300:]}")
        values = [entry["scores"]["All"]["f"] for entry in json.loads(target.read_text("utf-8"))]
    return sum(values) / len(values)
