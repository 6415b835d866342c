"""`being-vl results --paper`: the paper's rows as printed, ours below, empty where nothing was run."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from being_vl import example_checkpoint
from being_vl.cli import main
from being_vl.evaluation.scoring.yes_no import MME_COGNITION, MME_PERCEPTION
from being_vl.files import Result
from being_vl.studies.paper import _TABLE_C_2, paper_tables


def a_result(task: str, metrics: dict[str, float], name: str = "data") -> Result:
    return Result(
        task=task, dataset={"name": name, "id": None, "split": None}, metrics=metrics, num_examples=4,
        decoding={}, harness={"name": "being_vl", "version": "0"}, seconds=1.0, hardware="CPU",
    )  # fmt: skip


def test_the_papers_rows_are_as_printed() -> None:
    page = paper_tables({})
    assert (
        "| Llama 3.1 | VQ+BPE | PT(freeze)+SFT | 57.1 | 40.9 | 1223.5 | 307.1 | 79.0 | 46.0 |"
        in page
    )
    assert "| total | 173 | 149 | 98 |" in page
    levels = [line.split("|")[2:5] for line in page.splitlines() if line.count("|") == 5]
    sums = [sum(int(row[i]) for row in levels if row[0].strip().isdecimal()) for i in range(3)]
    assert sums == [2 * 173, 2 * 149, 2 * 98]  # the levels, and the total that the paper prints
    assert set(_TABLE_C_2) == {*MME_PERCEPTION, *MME_COGNITION}


def test_the_papers_mme_categories_add_up_to_its_table_5_1() -> None:
    """C.2's VQ+BPE column is that of PT(freeze)+SFT: 1223.5 and 307.1."""
    for column, sums in ((0, ("1223.5", "307.1")),):
        found = [
            f"{sum(float(_TABLE_C_2[part][column]) for part in parts):.1f}"
            for parts in (MME_PERCEPTION, MME_COGNITION)
        ]
        assert tuple(found) == sums


def test_ours_stand_below_and_what_was_not_run_is_empty() -> None:
    scores = {f"score/{part}": 100.0 for part in MME_PERCEPTION}
    results = [
        a_result("mme", {**scores, "perception": 1000.0, "cognition": 90.0, "score/code_reasoning": 90.0}),
        a_result("pope", {"accuracy": 71.25}),
        a_result("caption-flickr", {"CIDEr": 12.34, "METEOR": 5.0, "ROUGE-L": 6.0}, "flickr"),
    ]  # fmt: skip
    page = paper_tables({"runs/a": results})
    # One category of four is no sum to compare with the paper's.
    assert "| **runs/a** |  |  |  |  | 1000.0 |  | 71.2 |  |" in page
    assert "| code_reasoning | 42.50 | 35.00 | 90.00 |" in page
    assert (
        "| text_translation | 95.00 | 102.50 |  |" in page
        and "| scene | 125.00 | 101.75 | 100.00 |" in page
    )
    assert "| **ours: runs/a** | flickr | 12.3 |  | 5.0 | 6.0 |" in page


def test_figure_3_has_the_vocabulary_of_a_checkpoint_and_the_weights_of_its_rows(capsys) -> None:
    folder = str(example_checkpoint())
    model = AutoModelForImageTextToText.from_pretrained(folder)
    layout, weight = model.config.layout, model.get_input_embeddings().weight.float().abs()
    codes = weight[layout.first_code_id : layout.first_merge_id].mean()
    merges = weight[layout.first_merge_id : layout.size].mean()
    assert main(["results", "--paper", folder]) == 0
    printed = capsys.readouterr().out
    expected = f"| **{folder}** | {layout.num_merges} |{'  |' * 6} {codes:.4f} | {merges:.4f} |"
    assert expected in printed
    assert "| paper: VQ+BPE | 8192 | 57.1 |" in printed


def test_the_command(tmp_path, capsys) -> None:
    a_result("pope", {"accuracy": 71.25}).save(tmp_path)
    assert main(["results", "--paper", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"| **{tmp_path}** |  |  |  |  |  |  | 71.2 |  |" in printed
    assert main(["results", "--paper"]) == 0  # the paper's rows alone
    assert "Table C.4" in capsys.readouterr().out
    assert main(["results", "--paper", "--verdicts", "x.jsonl"]) == 2
