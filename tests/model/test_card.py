"""The card says what the model is, and takes scores without losing what was written by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.model.card import add_scores, write_model_card
from tests.tiny import golden

SCORE = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 8, "definition": "Share of equal answers."}
RESULTS: dict[str, Any] = {
    "task": "pathvqa",
    "data": {
        "test": {
            "num_questions": 8,
            "scores": {"exact_match": SCORE},
            "controls": {"majority answer": {"exact_match": {**SCORE, "value": 0.125}}},
            "interval": "95 %, 1000 bootstrap resamples",
        }
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = golden.model(tmp_path / "plip")
    model.config.base_llm = str(tmp_path / "base" / "Llama-3-8B")
    base = tmp_path / "base" / "Llama-3-8B"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\n# Llama\n")
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_saving_writes_a_card(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "\nlicense: other\n" in card.split("---")[1]
    assert "pipeline_tag: image-text-to-text" in card
    assert "research only. Not for diagnosis" in card
    assert "tiles of 32 pixels" in card
    assert "cross-attention to the tiles" in card
    assert "Llama-3-8B" in card
    assert "llama3" in card
    assert str(folder.parent) not in card


def test_saving_again_keeps_what_was_written(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("mine")
    golden.model(tmp_path / "plip").save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_a_model_that_ignores_the_tiles_says_so(tmp_path: Path) -> None:
    golden.model(tmp_path / "plip", cross=False).save_pretrained(tmp_path / "model")
    assert "overview alone" in (tmp_path / "model" / "README.md").read_text()


def test_the_title_is_the_folders_name_or_given(folder: Path) -> None:
    assert "\n# model\n" in (folder / "README.md").read_text()
    assert "\n# pa-llava\n" in write_model_card(folder, title="pa-llava").read_text()


def test_training_is_described(folder: Path) -> None:
    data = ["/data/instruct.jsonl", {"name": "PathVQA", "num_records": 19755, "terms": "MIT"}]
    card = write_model_card(folder, training={"data": data, "steps": 1000}).read_text()
    assert "| instruct.jsonl |" in card
    assert "| PathVQA | 19755 | MIT |" in card
    assert "| steps | 1000 |" in card
    assert "/data" not in card


def test_scores_are_added_by_the_command(folder: Path, tmp_path: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("# model", "# My model") + "\nBy hand.\n")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert main(["card", str(folder), "--scores", str(tmp_path / "results.json")]) == 0
    text = card.read_text()
    assert "| exact_match | 8 | 0.500 [0.250, 0.750] | 0.125 [0.250, 0.750] |" in text
    assert "- exact_match: Share of equal answers." in text
    assert "majority answer" in text
    assert "Not measured yet" not in text
    assert "# My model" in text
    assert text.endswith("By hand.\n")


def test_scores_of_the_same_data_are_replaced_and_others_stay(folder: Path) -> None:
    other = {"task": "zero-shot", "data": {"bach": {"num_images": 4, "metrics": {"accuracy": {**SCORE, "value": 1.0}}}}}
    for results in (
        RESULTS,
        other,
        {**RESULTS, "data": {"test": {"scores": {"exact_match": {**SCORE, "value": 0.9}}}}},
    ):
        add_scores(folder, results)
    text = (folder / "README.md").read_text()
    assert text.count("### pathvqa: test") == 1
    assert "0.900" in text
    assert "0.500 [" not in text
    assert "1.000 [" in text


def test_names_from_elsewhere_stay_in_their_cell(folder: Path) -> None:
    hostile = "a | b\n### <script> <!-- end of scores -->"
    add_scores(folder, {**RESULTS, "data": {hostile: RESULTS["data"]["test"]}})
    add_scores(folder, RESULTS)
    text = (folder / "README.md").read_text()
    assert text.count("<!-- end of scores -->") == 1
    assert "<script>" not in text


def test_a_bar_does_not_break_the_table(folder: Path) -> None:
    scores = {"recall of a|b": SCORE, "<i>": {**SCORE, "definition": "of a|b"}}
    controls = {"c|d": {"recall of a|b": SCORE}}
    add_scores(folder, {**RESULTS, "data": {"test": {"scores": scores, "controls": controls}}})
    text = (folder / "README.md").read_text()
    lines = [line for line in text.split("<!-- scores -->")[1].splitlines() if line.startswith("|")]
    assert lines[0] == "| score | n | model | c\\|d |"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert "- &lt;i>: of a\\|b" in text


def test_the_hub_sees_the_scores(folder: Path) -> None:
    other = {"task": "zero-shot", "data": {"bach": {"metrics": {"accuracy": {**SCORE, "value": 1.0}}}}}
    again = {**RESULTS, "data": {"test": {"scores": {"exact_match": {**SCORE, "value": 0.9}, "f1": {"value": None}}}}}
    for results in (RESULTS, other, again):
        add_scores(folder, results)
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "model"
    found = {
        (each.task_name, each.dataset_name, each.metric_name): each.metric_value for each in card.data.eval_results
    }
    assert found == {("pathvqa", "test", "exact_match"): 0.9, ("zero-shot", "bach", "accuracy"): 1.0}
    assert card.data.license_name == "see-licences-below"


def test_the_rest_of_the_front_matter_stays(folder: Path) -> None:
    card = folder / "README.md"
    front = "# mine\nlicense: mit # of the weights\ntags: [b,   a]\n"
    body = card.read_text().split("---\n", 2)[2]
    index = "model-index: # old\n# of another run\n- name: PA\n  results: []\n\n# of the data\n"
    card.write_text(f"---\n{front}{index}datasets: ['x']\n---\n{body}")
    for value in (0.9, 0.8):
        score = {"exact_match": {**SCORE, "value": value}}
        add_scores(folder, {**RESULTS, "data": {"test": {"scores": score}}})
    text = card.read_text()
    assert text.startswith(f"---\n{front}# of the data\ndatasets: ['x']\nmodel-index:\n- name: PA\n")
    assert [each.metric_value for each in ModelCard(text).data.eval_results] == [0.8]


def test_front_matter_of_another_layout_gets_the_scores(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text("---\n{license: mit}\n---\n" + card.read_text().split("---\n", 2)[2])
    add_scores(folder, RESULTS)
    data = ModelCard.load(card).data
    assert (data.license, data.eval_results[0].metric_value) == ("mit", 0.5)


def test_an_adapter_without_a_rank_is_named(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    assert "rank ?, alpha ?; the language model is not" in write_model_card(folder).read_text()


@pytest.mark.parametrize("front", ["", "---\nlicense: [\n---\n", "---\nmodel-index: nonsense\n---\n"])
def test_front_matter_by_hand_stays(front: str, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(front + card.read_text().split("---\n", 2)[2])
    add_scores(folder, RESULTS)
    text = card.read_text()
    assert text.startswith(front)
    assert "model-index:\n" not in text
    assert "0.500 [" in text


@pytest.mark.parametrize("kind", ["pallava_mlp", "somebodys"])
def test_the_connector_is_described_from_its_configuration(kind: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["connector_config"] = {"model_type": kind, "projection_depth": 3}
    config["connector_class"] = "somebodys.Connector" if kind == "somebodys" else None
    (folder / "config.json").write_text(json.dumps(config))
    row = next(line for line in write_model_card(folder).read_text().splitlines() if line.startswith("| connector"))
    assert "cross-attention" not in row
    assert ("MLP of 3 layers" if kind == "pallava_mlp" else "somebodys.Connector") in row


@pytest.mark.parametrize(
    "results", [{}, {"task": "x", "data": {"a": {}}}, {"task": "x", "data": {"a": {"scores": {"b": 1}}}}]
)
def test_what_is_no_result_is_refused(folder: Path, results: dict[str, Any]) -> None:
    before = (folder / "README.md").read_text()
    with pytest.raises(PallavaError, match=r"results"):
        add_scores(folder, results)
    assert (folder / "README.md").read_text() == before


def test_errors_of_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(tmp_path)]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert main(["card", str(folder), "--scores", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    (folder / "README.md").write_text("no place")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert main(["card", str(folder), "--scores", str(tmp_path / "results.json")]) == 2
    assert "place for scores" in capsys.readouterr().err
