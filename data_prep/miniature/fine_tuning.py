"""Fine-tuning in the demo: retrieval, captions and questions, each with the image encoder trained, and evaluated."""

from data_prep.miniature.schedule import Step
from data_prep.miniature.story import Commands, python

CAPTION_LENGTHS = ("--min-new-tokens", "3", "--max-new-tokens", "24")
TUNED = ("finetune_retrieval", "finetune_caption", "finetune_vqa")
"""The runs, each also the name of its evaluation."""
BEFORE_TUNING = ("retrieval", "captions-t5", "vqa-t5")
"""The evaluations of what these runs start from."""


def fine_tuning(story: Commands) -> list[Step]:
    """The data of fine-tuning, the three runs, and their evaluations on pictures that no training saw."""
    return [*_questions(story), story.index("coco", "coco.json", [story.folder / "raw" / "coco"], ("download-coco",)),
            *_runs(story), *_evaluations(story), *_scores(story)]  # fmt: skip


def _questions(story: Commands) -> list[Step]:
    """VQAv2's training questions, with the pictures that they are about."""
    asked, output = story.world / "vqav2", story.folder / "raw" / "vqav2"
    questions, annotations = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"
    files = ("--input", asked / questions, "--annotations", asked / annotations)
    folders = ("--images", story.world / "coco" / "images", "--output", output)
    command = python("data_prep.download", "vqav2", *files, *folders)
    return [
        Step("download-questions", command, output, ("world",), folder=output),
        story.index("questions", "questions.json", [output], ("download-questions",)),
    ]


def _runs(story: Commands) -> list[Step]:
    return [
        # The longest goes first. One rank takes less of the processor than two.
        story.train("finetune_vqa", ("train-stage2_t5", "questions"), "batch.micro_size=48", ranks=1),
        story.train("finetune_retrieval", ("train-stage1", "coco")),
        story.train("finetune_caption", ("train-stage2_t5", "coco")),
    ]


def _evaluations(story: Commands) -> list[Step]:
    retrieval, captions, questions = TUNED
    return [
        story.evaluate(retrieval, retrieval, "retrieval", story.world / "flickr30k", "--k-test", 16),
        story.evaluate(captions, captions, "captioning", story.world / "coco", *CAPTION_LENGTHS),
        story.evaluate(questions, questions, "vqa", story.world / "vqav2"),
    ]


def _scores(story: Commands) -> list[Step]:
    retrieval, captions, questions = TUNED
    return [
        story.score(retrieval, "retrieval", "scores.npz"),
        story.score(captions, "captions", "predictions.json", *story.caption_truth()),
        story.score(questions, "vqa", "predictions.json", *story.question_truth()),
    ]
