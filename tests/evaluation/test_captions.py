"""Captions: what is said where something is missing, and pycocoevalcap's own numbers where it is there."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from evaluation_fixtures import write_captions

from being_vl.evaluation.scoring import captions
from being_vl.evaluation.tasks import load_task

CAPTIONS = {"0": "a red square", "1": "a blue dog's picture, isn't it", "2": "a cat", "3": ""}
REFERENCES = {
    "0": ["A red square.", "a red picture with a white corner"],
    "1": ["A blue square.", "a blue picture"],
    "2": ["a teal square"],
    "3": ["a gray square", "A gray picture - with a corner!"],
}
needs_pycocoevalcap = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="pycocoevalcap or Java is not installed: pip install being-vl[caption]",
)


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ImportError, match=r"pip install being-vl\[caption\]"):
        load_task("caption", write_captions(tmp_path))


def test_missing_java(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", SimpleNamespace())
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="captions need Java"):
        captions.caption_scores(CAPTIONS, REFERENCES)


def test_missing_jar(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", SimpleNamespace())
    monkeypatch.setattr(captions.shutil, "which", lambda name: "/usr/bin/java")
    with pytest.raises(FileNotFoundError, match="spice_jar: /no/such: no such file"):
        captions.require("/no/such")


def test_captions_file(monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "require", lambda spice_jar: None)
    path = write_captions(tmp_path)
    task = load_task("caption", path)
    assert [row.target[0] for row in task.examples[:2]] == ["A red square.", "A blue square."]
    path.write_text(path.read_text().replace('"image_id": 0', '"image_id": 9'))
    with pytest.raises(ValueError, match=r"images\[0\]: 'id' 0 has no caption"):
        load_task("caption", path)


@needs_pycocoevalcap
def test_scores_are_those_of_the_coco_evaluation(monkeypatch, tmp_path):
    """COCOEvalCap from end to end, without SPICE, which it would download."""
    import pycocoevalcap.eval as official
    from pycocotools.coco import COCO

    images = [{"id": int(image)} for image in REFERENCES]
    annotations = [
        {"id": number, "image_id": int(image), "caption": text}
        for number, (image, text) in enumerate(
            (image, text) for image, texts in REFERENCES.items() for text in texts
        )
    ]
    results = [{"image_id": int(image), "caption": text or "."} for image, text in CAPTIONS.items()]
    (tmp_path / "truth.json").write_text(
        json.dumps({"info": {}, "images": images, "annotations": annotations, "type": "captions"})
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = COCO(str(tmp_path / "truth.json"))
    stub = SimpleNamespace(
        compute_score=lambda gts, res: (0.0, [{"All": {"f": 0.0}}] * len(res)),
        method=lambda: "SPICE",
    )
    monkeypatch.setattr(official, "Spice", lambda: stub)
    evaluation = official.COCOEvalCap(truth, truth.loadRes(str(tmp_path / "results.json")))
    evaluation.evaluate()
    ours = captions.caption_scores(CAPTIONS, REFERENCES)
    names = {"CIDEr": "CIDEr", "ROUGE-L": "ROUGE_L", "METEOR": "METEOR"}
    assert ours == pytest.approx({own: 100 * evaluation.eval[n] for own, n in names.items()})
    assert ours["CIDEr"] > 0


@needs_pycocoevalcap
def test_no_caption_is_an_error():
    with pytest.raises(ValueError, match="at least one caption"):
        captions.caption_scores({}, {})
    with pytest.raises(ValueError, match="image '9' has no references"):
        captions.caption_scores({"9": "a"}, REFERENCES)


def test_spice_runs_the_users_jar(monkeypatch, tmp_path):
    jar = tmp_path / "spice-1.0.jar"
    commands = []

    def java(command: list[str], **options) -> subprocess.CompletedProcess:
        commands.append(command)
        entries = json.loads(Path(command[4]).read_text())
        scores = [{"scores": {"All": {"f": 0.25 * n}}} for n in range(len(entries))]
        Path(command[6]).write_text(json.dumps(scores))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(captions.subprocess, "run", java)
    value = captions._spice(jar, {"0": ["x"], "1": ["y"]}, {"0": ["a"], "1": ["b"]})
    assert value == 0.125
    assert commands[0][:4] == ["java", "-Xmx8G", "-jar", str(jar)]


def test_a_failing_spice_is_an_error(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "no CoreNLP")
    monkeypatch.setattr(captions.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(OSError, match="SPICE failed: no CoreNLP"):
        captions._spice(tmp_path / "spice.jar", {"0": ["x"]}, {"0": ["a"]})
