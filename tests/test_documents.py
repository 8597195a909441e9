"""How the documents read, that what they name exists (links, commands, flags, files), and that trees are whole."""

import re
from pathlib import Path

import pytest

from tests.support.documents import ROOT, dead_links, documents, measure, sentences_of, unknown_names

README = ROOT / "README.md"
README_LINES, README_WORDS = 150, 1300
MEAN_WORDS, MOST_WORDS = 18, 40  # of a sentence
DOCUMENTS = documents()
OF_TODAY = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # which also names what was renamed
PICTURE_BYTES = 300_000
SOURCES = (".py", ".html", ".css", ".yaml")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_list_of_slow_files_is_sorted_and_names_files() -> None:
    """`make quick` leaves these out; pytest passes over a name that is none."""
    names = (ROOT / "tests" / "slow_files.txt").read_text().splitlines()
    assert names == sorted(names) and [name for name in names if not (ROOT / name).is_file()] == []


def test_the_readme_is_short() -> None:
    found = measure(README.read_text())
    assert found.lines <= README_LINES and found.words <= README_WORDS, found


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_sentences_are_short(path: Path) -> None:
    found = measure(path.read_text())
    assert found.mean <= MEAN_WORDS, f"{found.mean:.1f} words a sentence"
    assert found.longest <= MOST_WORDS, f"{found.longest} words: {found.longest_sentence}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(dead_links(path, path.read_text()))


@pytest.mark.parametrize("path", OF_TODAY, ids=_name)
def test_what_a_document_names_exists(path: Path) -> None:
    assert not list(unknown_names(path, path.read_text()))


def test_every_program_and_the_scripts_have_a_page_that_the_readme_links() -> None:
    text = README.read_text()
    for room in ("data_prep", "pipeline", "eval", "slurm", "tests", "data_prep/miniature"):
        assert (ROOT / room / "README.md").is_file() and f"({room}/README.md)" in text, room


def _sources(hall: str) -> set[str]:
    """The source files of a hall as paths below it, without those of a hall inside it."""
    files = [path for path in (ROOT / hall).rglob("*.*") if path.suffix in SOURCES and path.stem != "__init__"]
    return {name for path in files if not (name := str(path.relative_to(ROOT / hall))).startswith("miniature/")}


def _tree_of(hall: str) -> dict[str, str]:
    """What the section "Files" of a hall's README says, by the folder that a line belongs to ("" for the top)."""
    section = (ROOT / hall / "README.md").read_text().partition("\n## Files\n")[2].partition("\n## ")[0]
    block = section.partition("```text\n")[2].partition("\n```")[0]
    tree, folder = {"": ""}, ""
    for line in block.splitlines():
        if not line.startswith(" "):
            opened = re.match(r"([\w/]+/)(?: |$)", line)
            folder = opened[1] if opened else ""
        tree[folder] = f"{tree.get(folder, '')} {line}"
    return tree


@pytest.mark.parametrize("hall", ["data_prep", "data_prep/miniature", "pipeline", "eval"])
def test_the_tree_of_a_hall_names_every_source_file(hall: str) -> None:
    tree = _tree_of(hall)
    missing = []
    for name in sorted(_sources(hall)):
        folder = f"{name.split('/')[0]}/" if "/" in name else ""
        if name.rpartition("/")[2] not in tree.get(folder, "").split():
            missing.append(name)
    assert not missing, f"{hall}/README.md, Files, leaves out {' '.join(missing)}"


def test_the_pictures_are_small() -> None:
    for room in ("data_prep", "pipeline", "eval"):
        for path in (ROOT / room).rglob("*"):
            assert path.suffix not in (".png", ".jpg", ".webp") or path.stat().st_size < PICTURE_BYTES, path


LONG = f"It {' '.join(['word'] * 40)}."


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("One two three. Four five six, e.g. seven. Eight nine ten!", [3, 5, 3]),
        ("`make demo` runs it all. `make help` lists them. And 3.5 words a line.", [4, 3, 5]),
        ("A [link of five words](https://example.org/a.b). Then more of it.", [5, 4]),
        ("- an item without an end\n- another one of two\n  lines.\n\n1. a third item", [5, 5, 3]),
        (
            "# A heading. It is left out.\n\n| a row | is left out |\n\n```bash\nso. is. code.\n```\nBut this stays.",
            [3],
        ),
        (f"Short ones do not hide it. {LONG}", [6, 41]),
    ],
)
def test_sentences_are_told_apart(text: str, lengths: list[int]) -> None:
    assert [len(each.split()) for each in sentences_of(text)] == lengths


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```bash\npython -m data_prep.downlaod coco\n```", "data_prep.downlaod"),
        ("```\npython -m data_prep.download coco --input T \\\n    --outptu D\n```", "--outptu"),
        ("`deepspeed --num_gpus 8 --module pipeline.train --recipes R.yaml`", "--recipes"),
        ("`deepspeed --hostfile h -- -m pipeline.train --recipes R.yaml`", "--recipes"),
        ("`python -m eval.score vqa --prediction P.json`", "--prediction"),
        ("```bash\nsbatch --array=0-1 slurm/download.sbatch laion400m T --languages en\n```", "--languages"),
        ("`sbatch slurm/trian.sbatch R.yaml`", "slurm/trian.sbatch"),
        ("`make demos`", "make demos"),
        ("`python -m pipeline.train --recipe R.yaml --set batch.globalsize=8`", "batch.globalsize"),
        ("Set `run.keep_evry_steps`.", "run.keep_evry_steps"),
        ("The flag `--retry-fialed` does it.", "--retry-fialed"),
        ("See `data_prep/web/url_gaurd.py`.", "url_gaurd.py"),
        ("See `pipeline.cost.recipe_fcats`.", "recipe_fcats"),
        ("```text\ndata_prep/   companions.py sources.yaml\n```", "companions.py"),
    ],
)
def test_a_name_that_does_not_exist_is_found(text: str, fault: str) -> None:
    found = list(unknown_names(README, text))
    assert found and all(fault in each for each in found)


def test_names_that_exist_are_no_faults() -> None:
    text = """Set `run.keep_every_steps` and `--retry-failed`; `eval.score` writes `metrics.json`.
```bash
make setup && . .venv/bin/activate   # comment --with flags
python -m eval.score vqa --predictions P --annotations A --questions Q --output metrics.json
deepspeed --num_gpus 8 --module pipeline.train --recipe pipeline/recipes/stage1_vitg.yaml --set data.manifest=M
env -u SBATCH_PARTITION sbatch --time=1 slurm/score.sbatch vqa F --annotations A -- --training-hashes data/raw
slurm/chain -1 "--nodes=16 --time=12:00:00" A.yaml B.yaml vqa D O data.manifest=M | head -n 3
```"""
    assert not list(unknown_names(README, text))


@pytest.mark.parametrize("link", ["gone.md", "README.md#no-such-heading", "#gone"])
def test_a_dead_link_is_found(link: str, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(
        text := f"# A title, `here`\n\nSee [this]({link}), [that](#a-title-here) and [them](https://x.org)."
    )
    assert len(list(dead_links(page, text))) == 1
