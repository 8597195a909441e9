"""Official question files and LAVIS's give the same rows, and every question that is left out has its reason."""

import json

import pytest

from data_prep.tables.question_files import LONGEST_QUESTION, MOST_ANSWERS
from data_prep.tables.row import Question
from data_prep.tables.sources import choose_source, read_rows
from tests.support.tiny_questions import write_json, write_visual_genome, write_vqa

TRAIN = [
    (9, 9001, " How many dogs? ", ["two"] * 6 + ["2"] * 3 + ["The dogs."]),
    (25, 25000, "Is it Red?", ["Yes"] * 10),
    (9, 9000, "What is written?", ["a", "the", "?", "stop!"]),
]
VAL = [(42, 42000, "Where?", ["outside"] * 9 + ["the street"])]


def vqa(*paths, annotations=()):
    return list(read_rows(choose_source("vqav2"), *paths, annotations=annotations))


def test_a_row_is_a_picture_with_all_its_questions_and_counted_normalised_answers(tmp_path):
    train, val = write_vqa(tmp_path, "train2014", TRAIN), write_vqa(tmp_path, "val2014", VAL)
    rows = vqa(train[0], val[0], annotations=[train[1], val[1]])
    assert [(row.row, row.url, row.question_set, row.picture_id, row.captions) for row in rows] == [
        (0, "COCO_train2014_000000000009.jpg", "vqav2_train2014", 9, ()),
        (1, "COCO_train2014_000000000025.jpg", "vqav2_train2014", 25, ()),
        (2, "COCO_val2014_000000000042.jpg", "vqav2_val2014", 42, ()),
    ]
    assert [row.questions for row in rows] == [
        (Question(9001, "How many dogs?", (("2", 9), ("dogs", 1))), Question(9000, "What is written?", (("stop", 1),))),
        (Question(25000, "Is it Red?", (("yes", 10),)),),
        (Question(42000, "Where?", (("outside", 9), ("street", 1))),),
    ]
    assert [row.lost_questions for row in rows] == [(), (), ()]


def test_the_lists_of_lavis_give_the_rows_of_the_official_files(tmp_path):
    train = write_vqa(tmp_path, "train2014", TRAIN)
    entries = [
        {
            "question_id": number,
            "question": text,
            "answer": answers,
            "image": f"train2014/COCO_train2014_{image:012d}.jpg",
            "dataset": "vqa",
        }
        for image, number, text, answers in TRAIN
    ]
    lavis = write_json(tmp_path / "vqa_train.json", entries)
    assert vqa(lavis) == vqa(train[0], annotations=[train[1]])


@pytest.mark.parametrize("name", ["id", "image_id"])
def test_visual_genome_answers_are_in_lower_case_without_the_full_stop(tmp_path, name):
    asked = [(1, 11, "What colour is it?", "Green."), (1, 12, "How many?", "Two"), (7, 70, "Who?", "Mr. Smith.")]
    rows = list(read_rows(choose_source("visual_genome_qa"), write_visual_genome(tmp_path, asked, name)))
    assert [(row.url, row.question_set, row.picture_id) for row in rows] == [
        ("1.jpg", "visual_genome", 1),
        ("7.jpg", "visual_genome", 7),
    ]
    assert [[each.answers for each in row.questions] for row in rows] == [
        [(("green", 1),), (("two", 1),)],
        [(("mr. smith", 1),)],
    ]
    entries = [
        {
            "question_id": number,
            "question": text,
            "answer": answer.lower(),
            "image": f"image/{image}.jpg",
            "dataset": "vg",
        }
        for image, number, text, answer in asked
    ]
    lavis = list(read_rows(choose_source("visual_genome_qa"), write_json(tmp_path / "vg_qa.json", entries)))
    assert lavis == rows


def test_what_cannot_be_used_is_dropped_with_its_reason_and_nothing_else_is_lost(tmp_path):
    long = "why " * 5000
    train = write_vqa(
        tmp_path,
        "train2014",
        [
            (1, 10, "Fine?", ["yes"]),
            (1, 11, "  ", ["yes"]),
            (1, 12, long, ["yes"]),
            (1, 13, "Nothing left?", ["the", "?", "x" * 301]),
            (2, 10, "The same id?", ["yes"]),
            (2, 20, "Unanswered?", []),
        ],
    )
    content = json.loads(train[1].read_text())
    content["annotations"] = [each for each in content["annotations"][:4] if each["question_id"] != 10] + [
        {"question_id": 10, "answers": [{"answer": "yes", "answer_id": 1}]}
    ]
    train[1].write_text(json.dumps(content))
    rows = vqa(train[0], annotations=[train[1]])
    assert [[each.id for each in row.questions] for row in rows] == [[10], []]
    assert [row.lost_questions for row in rows] == [
        ("empty_question", "question_too_long", "no_answer"),
        ("repeated_question", "no_answer"),
    ]
    assert len(long) > LONGEST_QUESTION


ENTRY = {"question_id": 1, "question": "a?", "answer": ["b"], "image": "COCO_val2014_000000000042.jpg"}
OFFICIAL = {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 42, "question": "a?"}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ({"annotations": []}, "has no list 'questions' and data_subtype; give the official file of VQAv2"),
        (OFFICIAL | {"data_subtype": "../val2014"}, "has no list 'questions' and data_subtype"),
        (OFFICIAL, "has no answers; give --annotations v2_mscoco_val2014_annotations.json"),
        ([[]], "question 0 is not a question of LAVIS"),
        (
            [ENTRY | {"image": "../../COCO_val2014_42.jpg"}],
            "image '../../COCO_val2014_42.jpg', expected a name such as",
        ),
        ([ENTRY | {"image": "1.jpg"}], "expected a name such as COCO_val2014_000000000042.jpg"),
        ([ENTRY | {"question_id": True}], "id True, expected a whole number"),
        ([ENTRY | {"question_id": 1 << 63}], "id 9223372036854775808, expected a whole number"),
        ([ENTRY | {"question": None}], "NoneType, expected a text"),
        ([ENTRY | {"answer": ["b"] * (MOST_ANSWERS + 1)}], "answers are not a list of at most 1000"),
        ([ENTRY | {"answer": {"b": 1}}], "answers are not a list"),
        ([{"question_id": 1}], "question 0 is not a question of LAVIS .it has no 'answer'"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_file_and_entry(tmp_path, content, message):
    path = tmp_path / "q.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"--input {path}: .*{message}") as caught:
        vqa(path)
    assert "\n" not in str(caught.value)


def test_answers_that_do_not_fit_the_questions_are_refused(tmp_path):
    train, val = write_vqa(tmp_path, "train2014", TRAIN), write_vqa(tmp_path, "val2014", VAL)
    with pytest.raises(ValueError, match=r"has no answers of val2014; give v2_mscoco_val2014_annotations\.json too"):
        vqa(train[0], val[0], annotations=[train[1]])
    with pytest.raises(ValueError, match=r"annotation 0 is not an annotation of VQA \(question_id 9001 comes twice\)"):
        vqa(train[0], annotations=[train[1], train[1]])
    with pytest.raises(ValueError, match="holds its answers itself; leave --annotations out"):
        vqa(write_json(tmp_path / "vqa_train.json", [ENTRY]), annotations=[train[1]])
    with pytest.raises(ValueError, match="source 'coco' has no such files; leave it out"):
        list(read_rows(choose_source("coco"), train[0], annotations=[train[1]]))
    with pytest.raises(ValueError, match="source 'coco' is read from one file or folder; give one"):
        list(read_rows(choose_source("coco"), train[0], val[0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"qas": []}, "is of type dict, expected a list of questions and answers"),
        (
            [{"id": 1, "qas": [{"qa_id": 1, "question": "a?"}]}],
            "picture 0 has no list of questions .it has no 'answer'",
        ),
        ([{"id": "1", "qas": []}], "id 1, expected a whole number"),
        ([{"qas": []}], "it has no 'image_id'"),
    ],
)
def test_a_malformed_file_of_visual_genome_is_one_line(tmp_path, content, message):
    path = write_json(tmp_path / "q.json", content)
    with pytest.raises(ValueError, match=f"--input {path}: .*{message}"):
        list(read_rows(choose_source("visual_genome_qa"), path))
