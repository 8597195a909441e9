"""Recipes: the shipped ones hold the paper's values; overrides edit before validation."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic.fields import FieldInfo

from pipeline.config import Recipe, Section, dump_recipe, for_ranks, load_recipe, parse_recipe
from pipeline.config.__main__ import page
from pipeline.config.places import FILES, TOWERS, moved

PIPELINE = Path(__file__).parents[2] / "pipeline"
SHIPPED = sorted((PIPELINE / "recipes").glob("*.yaml"))
PRE_TRAINING = [path for path in SHIPPED if path.stem.startswith("stage")]
STAGE_1 = PRE_TRAINING[0]
TUNING = {  # the paper's Tables 7 to 9: task -> batch, pixels, layer decay of each recipe
    "caption": (256, 364, {"opt2.7b": 1.0, "opt6.7b": 0.95, "flant5xl": 1.0}),
    "vqa": (128, 490, {"opt2.7b": 0.95, "opt6.7b": 0.9, "flant5xl": 0.95}),
    "retrieval": (224, 364, {"vitg": 0.95, "vitl": 1.0}),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_their_batches_divide(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    for_ranks(recipe, 2 if "miniature" in path.stem else 16)
    (written := tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(written) == recipe
    assert (Path(__file__).parents[2] / recipe.run.zero).is_file()


@pytest.mark.parametrize("path", PRE_TRAINING, ids=lambda path: path.stem)
def test_the_papers_recipes_hold_the_papers_values(path: Path) -> None:
    recipe = load_recipe(path)
    vit_g, flan = "vitg" in path.stem, "flant5" in path.stem
    batch = {1: 1680 if vit_g else 2320, 2: 1520 if flan else 1920}[recipe.stage]
    assert recipe.batch.global_size == batch and recipe.run.steps == {1: 250_000, 2: 80_000}[recipe.stage]
    optimizer = recipe.optimizer
    assert (optimizer.peak_learning_rate, optimizer.warmup_steps) == (1e-4, 2000)
    assert optimizer.minimum_learning_rate == {1: 1e-5, 2: 5e-5}[recipe.stage]
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.98), 0.05)
    assert (recipe.qformer.num_query_tokens, recipe.qformer.projection_width, recipe.qformer.dropout) == (32, 256, 0.1)
    assert (recipe.data.max_text_tokens, recipe.data.crop_scale, recipe.data.horizontal_flip) == (32, (0.5, 1.0), True)
    assert recipe.vision.image_size_px == 224 and recipe.objectives.label_smoothing == 0.1
    assert recipe.language is None or recipe.language.precision == ("bf16" if flan else "fp16")


@pytest.mark.parametrize(("task", "model"), [(task, model) for task in TUNING for model in TUNING[task][2]])
def test_recipes_of_fine_tuning_hold_the_papers_values(task: str, model: str) -> None:
    recipe, (batch, pixels, decays) = load_recipe(PIPELINE / "recipes" / f"finetune_{task}_{model}.yaml"), TUNING[task]
    vit_l, optimizer = model == "vitl", recipe.optimizer
    assert (recipe.batch.global_size, recipe.vision.image_size_px, recipe.run.epochs) == (batch, pixels, 5)
    assert recipe.vision.trained and recipe.vision.drop_path == 0 and recipe.vision.precision == "bf16"
    assert (optimizer.peak_learning_rate, optimizer.warmup_steps) == (5e-6 if vit_l else 1e-5, 1000)
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.98 if vit_l else 0.999), 0.05)
    assert (optimizer.layer_decay, optimizer.minimum_learning_rate, optimizer.warmup_start) == (decays[model], 0, 1e-8)
    assert optimizer.max_gradient_norm == 0  # the reference implementation clips nowhere
    assert recipe.data.sample == ("question" if task == "vqa" else "caption")
    prompt = recipe.language.prompt if recipe.language else None
    assert prompt == {"caption": "a photo of", "vqa": "Question: {} Answer:", "retrieval": None}[task]
    assert (recipe.qformer.question, recipe.init_text_weights is None) == (
        ("question", False) if task == "vqa" else ("none", True)
    )


def test_overrides_edit_before_validation(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    content = {
        "stage": 1,
        "vision": {"name": "a"},
        "data": {"manifest": "${oc.env:BLIP2_NO_SUCH_VARIABLE}"},
        "batch": {"global_size": 8, "micro_size": 3},
        "run": {"output": "out/${stage}", "steps": 5},
    }
    path.write_text(yaml.safe_dump(content))
    overrides = ["data.manifest=m.json", "batch.micro_size=4", "data.crop_scale=[0.9,1.0]", "seed=7"]
    recipe = load_recipe(path, [*overrides, "vision.name=local-dir:/x=y", "seed=8"])
    assert (recipe.data.manifest, recipe.batch.micro_size, recipe.seed) == (Path("m.json"), 4, 8)
    assert (recipe.data.crop_scale, recipe.vision.name, recipe.run.output) == (
        (0.9, 1.0),
        "local-dir:/x=y",
        Path("out/1"),
    )
    with pytest.raises(ValueError, match="NO_SUCH_VARIABLE"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("run.steps=1" + "0" * 30, "run.steps 1000000000000000000000000000000: must be from"),
        ("seed=-1" + "0" * 30, "seed -1"),
        ("optimizer.peak_learning_rate=.inf", "optimizer.peak_learning_rate inf: Input should be a finite"),
        ("objectives.itm_weight=.nan", "objectives.itm_weight nan: Input should be a finite"),
        ('run.output="a\\0b"', "run.output 'a\\x00b': holds a NUL"),
        ('vision.name="a\\0b"', "vision.name 'a\\x00b': holds a NUL"),
        ("run.steps=" + "9" * 5000, "not readable as YAML"),
        ("data.urls=" + "[" * 3000 + "]" * 3000, "not readable as YAML"),
    ],
)
def test_values_out_of_range_are_named_with_field_and_bound(edit: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        load_recipe(STAGE_1, [edit])


def test_every_place_of_a_recipe_may_begin_at_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file and as an edit: every field of type path, and the towers' folders. Names of the hub stay."""
    monkeypatch.setenv("HOME", "/home/me")
    recipe = next(path for path in SHIPPED if path.stem.startswith("stage2"))
    needed = ["qformer.question=prompt", "data.sample=question", "language.prompt='{} is'"]  # for init_text_weights
    paths = [name for name, field in _fields(Recipe) if Path in (field.annotation, *get_args(field.annotation))]
    assert sorted({*paths, *TOWERS}) == sorted({*FILES, *TOWERS, "run.zero"})
    edits = [f"{name}=~/a/{name}" for name in (*paths, "qformer.bert", "language.name")]
    found = dump_recipe(load_recipe(recipe, [*needed, *edits, "vision.name=local-dir:~/a/vit"]))
    assert found.count("/home/me/a/") == len(edits) + 1 and "~" not in found
    named = load_recipe(recipe, ["vision.name=transformers:~/dino", "language.name=a/b~c", "run.output=a~/b"])
    assert (named.vision.name, str(named.run.output)) == ("transformers:/home/me/dino", "a~/b")
    assert named.language and named.language.name == "a/b~c"
    assert moved(named, ["language.name=~/opt"]).language.name == "/home/me/opt"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("visoin.name=a", "recipe: visoin: unknown field (did you mean vision?); "),
        ("run.outptu=a", "recipe: run.outptu 'a': unknown field (did you mean output?); "),
        ("language.lora.rnak=8", "recipe: language.lora.rnak 8: unknown field (did you mean rank?); "),
        ("seed.x=1", "recipe: seed: "),
        ("zebra=1", "recipe: zebra 1: unknown field; "),
    ],
)
def test_a_misspelt_field_is_named_with_the_nearest_right_one(edit: str, named: str) -> None:
    recipe = next(path for path in SHIPPED if path.stem.startswith("stage2"))
    with pytest.raises(ValueError) as refused:
        load_recipe(recipe, [edit])
    assert str(refused.value).startswith(named)


def test_a_misspelt_field_is_told_before_the_one_that_is_missing_for_it() -> None:
    content = yaml.safe_load(STAGE_1.read_text())
    content["batch"] = {"global_sise": 8, "micro_size": 8}
    with pytest.raises(
        ValueError, match=r"^recipe: batch.global_sise 8: unknown field \(did you mean global_size\?\); "
    ):
        parse_recipe(content)


def test_stage_1_has_no_language_model_to_edit() -> None:
    """In its recipe and in its weights': one edit is told as that, and not by the fields that it leaves out."""
    recipe = load_recipe(STAGE_1)
    edit = ["language.precision=int8"]
    for read in (lambda: load_recipe(STAGE_1, edit), lambda: moved(recipe, edit)):
        with pytest.raises(ValueError, match=r"^recipe: language: stage 1 has no language model, nor have its"):
            read()


def test_a_recipe_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ValueError, match=r"deep.yaml: is not readable as YAML"):
        load_recipe(tmp_path / "deep.yaml")


def test_a_recipe_cannot_be_changed_once_read(tmp_path: Path) -> None:
    recipe = load_recipe(STAGE_1)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(("edits", "fits"), [((), False), (("objectives.itm_weight=0",), True)])
def test_stage_1_matches_among_two_pairs_or_more(edits: tuple[str, ...], fits: bool) -> None:
    one_pair = [*edits, "batch.global_size=1", "batch.micro_size=1"]
    recipe = next(path for path in SHIPPED if path.stem == "stage1_vitg")
    if fits:
        load_recipe(recipe, one_pair)
    else:
        with pytest.raises(ValueError, match="image-text matching"):
            load_recipe(recipe, one_pair)


def test_fewer_ranks_accumulate_more_in_stage_2_and_must_be_told_in_stage_1() -> None:
    folder = Path(__file__).parents[2] / "pipeline" / "recipes"
    stage2 = load_recipe(folder / "stage2_vitg_opt2.7b.yaml")
    assert [for_ranks(stage2, ranks).batch.accumulation for ranks in (32, 16, 8)] == [1, 2, 4]
    with pytest.raises(ValueError, match="x 12 ranks"):
        for_ranks(stage2, 12)
    stage1 = load_recipe(folder / "stage1_vitg.yaml")
    with pytest.raises(ValueError, match="accumulation 1 x 8 ranks"):
        for_ranks(stage1, 8)
    assert for_ranks(load_recipe(folder / "stage1_vitg.yaml", ["batch.accumulation=2"]), 8).batch.accumulation == 2


def test_weights_of_stage_1s_losses_are_no_fields_of_stage_2() -> None:
    with pytest.raises(ValueError, match=r"objectives: are stage 1's, and stage is 2"):
        load_recipe(STAGE_1.with_name("stage2_vitg_opt2.7b.yaml"), ["objectives.itg_weight=0"])


def test_what_a_resume_is_to_overlook_must_have_a_name() -> None:
    named = [
        "manifest",
        "towers.vision",
        "batch.pass_size",
        "vision",
        "optimizer.betas",
        "language.config.dense_act_fn",
    ]
    recipe = load_recipe(STAGE_1, [f"run.resume_despite=[{','.join(named)}]"])
    assert recipe.run.resume_despite == tuple(named)
    assert load_recipe(STAGE_1, ["run.resume_despite=manifest"]).run.resume_despite == ("manifest",)
    for typo in ("manifst", "vision.nme", "optimiser"):
        with pytest.raises(ValueError, match=f"run.resume_despite '{typo}'"):
            load_recipe(STAGE_1, [f"run.resume_despite=[{typo}]"])
    with pytest.raises(ValueError, match=r"data.urls 5: is not a list"):
        load_recipe(STAGE_1, ["data.urls=5"])


def test_the_page_of_fields_is_made_from_the_fields() -> None:
    assert (PIPELINE / "RECIPE.md").read_text() == page(), "python -m pipeline.config > pipeline/RECIPE.md"


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each field that is no section, by its name, and those within sections."""
    for name, field in section.model_fields.items():
        kinds = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        within = [kind for kind in kinds if issubclass(kind, Section)]
        if within:
            yield from _fields(within[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_every_field_has_a_description_and_a_row_on_the_page() -> None:
    text, fields = page(), dict(_fields(Recipe))
    assert len(fields) >= 80 and {"stage", "vision.name", "language.lora.rank"} <= fields.keys()
    for name, field in fields.items():
        assert field.description, f"{name} has no description"
        assert text.count(f"\n| `{name}` |") == 1


def test_a_length_in_epochs_becomes_steps_and_is_written_as_epochs() -> None:
    recipe = load_recipe(STAGE_1, ["run.steps=0", "run.epochs=5", "batch.global_size=256"])
    counted = recipe.in_steps(566_747)
    assert counted.run.steps == 11_065 and counted.run.steps_per_epoch == 2_213  # the paper's captioning
    assert dump_recipe(counted) == dump_recipe(recipe)
    assert parse_recipe(yaml.safe_load(dump_recipe(counted))) == recipe == counted.as_written()
    in_steps = load_recipe(STAGE_1)
    assert in_steps.in_steps(9_999) == in_steps == in_steps.as_written()


@pytest.mark.parametrize(
    ("edits", "error"),
    [
        (["run.steps=0"], "recipe: run: needs exactly one of steps and epochs"),
        (["run.epochs=2"], "recipe: run: needs exactly one of steps and epochs"),
        (["run.checkpoint_every_steps=0"], "recipe: run: checkpoint_every_steps 0: "),
        (["run.steps=0", "run.epochs=2", "data.manifest=null", "data.urls=http://x/a.tar"], "recipe: run.epochs 2: "),
        (["optimizer.schedule=staircase"], "recipe: optimizer.schedule 'staircase': "),
        (["validation.manifest=m.json", "validation.every_steps=0"], "recipe: validation.every_steps 0: "),
    ],
)
def test_epochs_that_cannot_be_counted_are_refused_in_one_line(edits: list[str], error: str) -> None:
    with pytest.raises(ValueError) as refused:
        load_recipe(STAGE_1, edits)
    assert str(refused.value).startswith(error) and "; set " in str(refused.value)
    assert "\n" not in str(refused.value)


QUESTIONS = ["data.sample=question", "language.prompt='Question: {} Answer:'"]


@pytest.mark.parametrize(
    ("stage", "edits", "error"),
    [
        (1, ["data.sample=question"], "recipe: data.sample 'question': stage 1"),
        (2, ["data.sample=question"], "recipe: language.prompt '': needs one {}"),
        (2, ["data.sample=question", "language.prompt='{} {}'"], "recipe: language.prompt '{} {}': needs one {}"),
        (2, ["data.sample=caption", "language.prompt='{} is'"], "recipe: language.prompt '{} is': has a {}"),
        (2, ["language.prompt='a photo of '"], "recipe: language.prompt 'a photo of ': begins or ends with white"),
        (2, ["qformer.question=prompt"], "recipe: qformer.question 'prompt': data.sample is 'image'"),
        (2, [*QUESTIONS, "qformer.question=question"], ""),
    ],
)
def test_questions_need_a_language_model_and_a_place_in_its_prompt(stage: int, edits: list[str], error: str) -> None:
    path = next(path for path in SHIPPED if path.stem.startswith(f"stage{stage}"))
    if not error:
        assert load_recipe(path, edits).language.prompt == "Question: {} Answer:"  # type: ignore[union-attr]
        return
    with pytest.raises(ValueError) as refused:
        load_recipe(path, edits)
    assert str(refused.value).startswith(error) and "\n" not in str(refused.value)
