"""`${oc.env:NAME}` in recipes: which variables may be read, and what files keep of them."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import dump_recipe, in_environment, load_recipe, parse_recipe, references_in, with_absolute_places
from pipeline.config.reading import edited

STAGE_1 = Path(__file__).parents[2] / "pipeline" / "recipes" / "stage1_vitg.yaml"


@pytest.mark.parametrize("name", ["SOME_TOKEN", "${oc.decode:SOME_TOKEN}"])
def test_a_recipe_cannot_read_secrets_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret-text")
    monkeypatch.setenv("BLIP2_DATA", "/data")
    with pytest.raises(ValueError, match="SOME_TOKEN} is not allowed") as fault:
        load_recipe(STAGE_1, [f"run.output=${{oc.env:{name}}}"])
    assert "secret-text" not in str(fault.value)
    assert load_recipe(STAGE_1, ["run.output=${oc.env:BLIP2_DATA}/a"]).run.output == Path("/data/a")
    assert load_recipe(STAGE_1, ["run.output=${oc.env:BLIP2_NONE,b}"]).run.output == Path("b")


def test_a_recipe_of_weights_reads_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a process that has not read a recipe's file before, and with an edit beside it."""
    monkeypatch.setenv("MY_SECRET", "s3cr3t")
    content = yaml.safe_load(STAGE_1.read_text())
    content["run"] = {**content["run"], "output": "runs/${oc.env:MY_SECRET}", "steps": 5}
    recipe = edited(parse_recipe(content), ["data.manifest=/x/y.json"])
    assert "s3cr3t" not in dump_recipe(recipe) and str(recipe.data.manifest) == "/x/y.json"
    with pytest.raises(ValueError, match=r"MY_SECRET}? is not allowed"):
        edited(recipe, ["qformer.bert=${oc.env:MY_SECRET}"])


@pytest.mark.parametrize("value", ["/a, b: {c}/$d 'e'", "/x\\", "/${stage}", "relative", "/1", "/plain", "/é€ # %", ""])
def test_what_is_written_keeps_the_reference_and_opens_without_the_variable(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No value is ever read as more than a text; where quotes cannot hold it, it stands for itself."""
    monkeypatch.setenv("BLIP2_DATA", value)
    edits = ["data.manifest=${oc.env:BLIP2_DATA,x}/m.json", "seed=${oc.env:BLIP2_SEED,3}", "run.output=runs/\\${stage}"]
    recipe = with_absolute_places(load_recipe(STAGE_1, edits))
    monkeypatch.delenv("BLIP2_DATA")
    (path := tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(path)
    assert again.model_dump() == recipe.model_dump()
    assert recipe.data.manifest == Path(f"{value}/m.json").absolute()
    assert recipe.seed == 3 and "BLIP2_SEED" not in path.read_text()  # a number decides what a run computes
    is_safe = not set("'\\") & set(value) and "${" not in value
    assert ("${oc.env:BLIP2_DATA,'" in path.read_text()) == is_safe
    if is_safe:
        assert again.references == recipe.references and dump_recipe(again) == dump_recipe(recipe)
    monkeypatch.setenv("BLIP2_DATA", "/new/${stage}")
    if is_safe:
        assert load_recipe(path).data.manifest == Path("/new/${stage}/m.json")
        assert "BLIP2_DATA" not in dump_recipe(edited(recipe, ["data.manifest=/x/y.json"]))


def test_foreign_weights_refer_to_allowed_variables_in_places_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MY_SECRET", "BLIP2_X"):
        monkeypatch.setenv(name, "s3cr3t")
    hostile = ["${oc.env:MY_SECRET}", "${oc.decode:${oc.env:BLIP2_X}}", "${oc.env:BLIP2_X}${oc.env:MY_SECRET}", 5, [1]]
    for text in (*hostile, "\\${oc.env:BLIP2_X}", "${oc.env:BLIP2_X,${oc.env:MY_SECRET}}"):
        assert references_in({"vision.name": text}) == {}
    assert references_in({"language.prompt": "${oc.env:BLIP2_X}", "seed": "${oc.env:BLIP2_X}"}) == {}
    recipe = parse_recipe(yaml.safe_load(STAGE_1.read_text())).referring({"run.output": "${oc.env:BLIP2_X}"})
    assert "s3cr3t" not in str(in_environment(recipe))  # files are what they were


def test_a_reference_to_no_place_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP2_X", "/a")
    references = references_in({"vision.name": "\0${oc.env:BLIP2_X}/b"})
    with pytest.raises(ValueError, match=r"^recipe: vision.name '\\x00/a/b': holds a NUL") as error:
        in_environment(parse_recipe(yaml.safe_load(STAGE_1.read_text())).referring(references))
    assert "\n" not in str(error.value)
