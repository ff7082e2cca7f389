"""A study says all that is wrong with it at once, whatever part of it that is in: nothing is trained to find out."""

from pathlib import Path

import pytest
import yaml

from xfer.__main__ import main


@pytest.fixture
def study(recipe_values) -> dict:
    """With a fault in everything that the schema does not see."""
    data = recipe_values["data"]
    data["sources"]["paint"]["path"] = "pain"
    data["sources"]["outline"]["where"] = {"classes": ["circel"]}
    recipe_values["model"]["branches"]["fine"]["weights"] = "/no/such.pth"
    space = {
        "train.stepz": {"choice": [1]},
        "quantize.bits": {"choice": [4, 9]},
        "model.fusion.weights": {"simplex": ["fine", "curse"]},
    }
    return {"name": "search", "job": {"recipe": recipe_values}, "space": space}


UNSEEN = ("pain: no such folder", "where.classes: circel", "/no/such.pth", "'steps'?", "or 32, got 9", "curse")


def said_by_tune(study: dict, tmp_path: Path, capsys) -> str:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(SystemExit, match="2"):
        main(["tune", str(tmp_path / "study.yaml")])
    assert not (tmp_path / "runs").exists()
    return capsys.readouterr().err


def test_space_data_and_weights_come_together(study, tmp_path, capsys):
    study["name"] = "tiny"
    text = said_by_tune(study, tmp_path, capsys)
    for part in (*UNSEEN, "the study and its job are both called 'tiny'"):
        assert part in text
    assert f"{len(UNSEEN) + 1} faults" in text


def test_a_fault_of_the_schema_hides_none_of_them(study, tmp_path, capsys):
    study["search"] = {"trails": 3}
    study["space"]["train.steps"] = {"choise": [4]}
    study["job"] |= {"cluster": {"worker": 2, "zero_stage": True}}
    data = study["job"]["recipe"]["data"]
    data |= {"sedd": 1, "stages": [{"start": 8, "weights": {"paynt": 1}}]}
    text = said_by_tune(study, tmp_path, capsys)
    schema = ("'trials'?", "'choice'?", "'workers'?", "cluster.zero_stage: must be a number", "'seed'?", "called paynt")
    for part in (*UNSEEN, *schema):
        assert part in text
    assert f"{len(UNSEEN) + len(schema)} faults" in text


def test_a_list_that_is_short_only_for_a_faulty_value_in_it_is_no_second_fault(study, tmp_path, capsys):
    study["space"] = {"train.learning_rate": {"uniform": [float("nan"), 0.1]}}
    study["job"]["recipe"]["train"]["teacher"] = {"from": "/no/teacher"}
    text = said_by_tune(study, tmp_path, capsys)
    assert "train.learning_rate.uniform.0: must be a finite number, got NaN" in text
    assert "more values" not in text
    assert "train.teacher.from: /no/teacher" in text
