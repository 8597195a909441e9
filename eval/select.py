"""`python -m eval.select RUN --metric cider`: name the checkpoint with the best validation score, and keep it.

It reads the scores that eval.watch has of the run's checkpoints, OUTPUT/RUN/step_N/NAME/metrics.json. The weights of
the best checkpoint are kept in RUN/selected, whatever the training removes later. Give `--weights RUN/selected` to
eval.run for the test set. The last line that is printed is the checkpoint's folder.
"""

import argparse
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, print_settings, printable

if TYPE_CHECKING:
    from eval.reporting.selection import Scored, Ties

CHOICES = {  # of --metric; eval/reporting/selection.py has what each is
    "cider": "captions: CIDEr",
    "cider+bleu4": "captions: the sum of CIDEr and BLEU-4, as LAVIS chooses",
    "mean_recall": "retrieval: the mean of R@1, 5 and 10 of both directions, after the rerank",
    "tr_mean": "retrieval: the mean of R@1, 5 and 10 of text retrieval, as LAVIS chooses",
    "own_answers": "questions of your own: accuracy by own/normalised",
    "vqa": "questions: accuracy of VQAv2 by the official rule",
}


def select(run: Path, scores: Path, metric: str, evaluation: str | None, ties: "Ties") -> Path:
    """Choose, keep, and return the checkpoint's folder. Raises ValueError in one line when nothing can be chosen."""
    from eval.reporting.selection import Selection, best_of, validation_scores
    from eval.reporting.training_sources import WEIGHTS
    from pipeline.files import sha256_of

    checkpoints = sorted(path.parent for path in (run / "checkpoints").glob("step_*/COMPLETE"))
    if not checkpoints:
        raise ValueError(f"RUN {run}: has no whole checkpoint in checkpoints/; name a run folder of pipeline.train")
    scored = validation_scores(scores, metric, evaluation)
    there = _whose_checkpoint_is_there(scored, [folder.name for folder in checkpoints])
    if not there:
        raise ValueError(f"RUN {run}: none of the {len(scored)} scored checkpoints is there now, the last was "
                         f"{scored[-1].step}; raise run.keep_checkpoints, and train again")  # fmt: skip
    best = best_of(there, ties)
    weights = run / "checkpoints" / best.step / WEIGHTS
    digest = sha256_of(weights)
    if best.task["weights_sha256"] != digest:
        raise ValueError(f"{best.folder}: scores of other weights than {weights} holds now; evaluate it again")
    values = {each.step: each.value for each in scored}
    keep(weights, run, Selection(
        step=best.step, metric=metric, ties=ties, evaluation=best.name, data_set=str(best.task.get("data_set")),
        protocol=best.protocol, weights_sha256=digest, values=values,
    ).model_dump_json(indent=1))  # fmt: skip
    return weights.parent


def _whose_checkpoint_is_there(scored: "Sequence[Scored]", steps: Sequence[str]) -> "list[Scored]":
    """The scores of checkpoints that are there. Prints every score, and names what is missing on either side."""
    for each in scored:
        gone = "" if each.step in steps else " (the checkpoint is gone)"
        print(printable(f"{each.step} {each.value:.4f} {each.name} {each.protocol}{gone}"))
    names = {each.step for each in scored}
    for step in steps:
        if step not in names:
            print(f"{step} is not scored yet, and not compared")
    return [each for each in scored if each.step in steps]


def keep(weights: Path, run: Path, selection: str) -> None:
    """Put the weights into RUN/selected: as a second name of the same file, or as a copy where there are no links.

    The training may remove its checkpoint at any time: a name of one's own keeps the file. Weights come first and
    selection.json last; its digest says whether they belong together.
    """
    from eval.reporting.selection import SELECTED, SELECTION
    from pipeline.files import PARTIAL_SUFFIX, naming_full_disk, replace_file, sync_file

    folder = run / SELECTED
    folder.mkdir(exist_ok=True)
    for left in folder.glob(f".*{PARTIAL_SUFFIX}"):
        left.unlink(missing_ok=True)
    temporary = folder / f".{weights.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        try:
            os.link(weights, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            with naming_full_disk(folder / weights.name):
                shutil.copyfile(weights, temporary)
                sync_file(temporary)
        temporary.replace(folder / weights.name)
    except FileNotFoundError as error:
        raise ValueError(f"{weights}: was removed meanwhile; run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)  # it stays where both names are of the same file already
    replace_file(folder / SELECTION, selection + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.select", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of pipeline.train")
    shown = "\n".join(f"{name}: {what}" for name, what in CHOICES.items())
    parser.add_argument("--metric", choices=CHOICES, required=True, metavar="M", help=shown)
    parser.add_argument("--scores", type=Path, metavar="OUTPUT/RUN",
                        help="of eval.watch; default: eval/RUN beside the run folder")  # fmt: skip
    parser.add_argument("--evaluation", metavar="NAME", help="of the watch list, if several have the metric")
    parser.add_argument("--ties", choices=("earlier", "later"), default="earlier",
                        help="of equal scores, take this checkpoint (default: earlier, as LAVIS does)")  # fmt: skip
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> None:
        run = options.run.absolute()
        scores = options.scores or run.parent / "eval" / run.name
        folder = select(options.run, scores, options.metric, options.evaluation, options.ties)
        print(f"kept as {options.run / 'selected'}")
        print(folder)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
