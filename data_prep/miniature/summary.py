"""Collects the numbers of the demo in `summary.json`, and prints them as a table."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.miniature.language import is_true
from data_prep.miniature.scenes import Scene, scene_from_json
from data_prep.shards import tar_files
from pipeline.command_line import Parser
from pipeline.files import replace_file

WEB_SOURCES = ("laion400m", "cc3m")
LANGUAGE_MODELS = ("t5", "opt")
DOMAINS = {"in": "in-domain", "near": "near-domain", "out": "out-domain", "overall": "overall"}


def _scenes_by_url(world: Path) -> dict[str, Scene]:
    import pandas

    truth = pandas.read_parquet(world / "truth.parquet")
    return {image: scene_from_json(json.loads(scene)) for image, scene in zip(truth.image, truth.scene, strict=True)}


def true_share(tars: Iterable[Path], scenes: dict[str, Scene]) -> float:
    """The percentage of the captions of shards that are true of their image."""
    verdicts = [
        is_true(str(caption).lower(), scenes[sample.record["url"]])
        for tar in tars
        for sample in tar_files.read_samples(tar)
        for caption in sample.record["captions"]
    ]
    return 100 * sum(verdicts) / len(verdicts)


def _download(folder: Path) -> dict[str, Any]:
    import pandas

    ledgers = [path for source in WEB_SOURCES for path in (folder / "raw" / source).rglob("*.ledger.parquet")]
    rows = pandas.concat([pandas.read_parquet(path) for path in ledgers])
    reasons = Counter(rows.reason[rows.status == "dropped"])
    return {"rows": len(rows), "kept": int((rows.status == "kept").sum()), "dropped_by_reason": dict(reasons)}


class Metrics:
    """The metrics.json files of the demo's evaluations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def content(self, evaluation: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (self.folder / "eval" / evaluation / "metrics.json").read_text(encoding="utf-8")
        )
        return content

    def value(self, evaluation: str, name: str, subset: str = "overall", protocol: str = "") -> float:
        for row in self.content(evaluation)["metrics"]:
            if row["name"] == name and row["subset"] == subset and row["protocol"].endswith(protocol):
                return round(float(row["value"]), 2)
        raise ValueError(f"evaluation {evaluation}: has no metric {name} of {subset} {protocol}; score it again")


def collect(folder: Path, seed: int, costs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of `summary.json`: percentages from 0 to 100, CIDEr as papers print it, seconds for each step."""
    metrics, scenes = Metrics(folder), _scenes_by_url(folder / "world")
    gallery = metrics.content("retrieval")["n"]
    retrieval = {
        f"{name}{suffix}": metrics.value("retrieval", name, protocol=protocol)
        for suffix, protocol in (("", "/itm+itc"), ("_itc_only", "ret/itc"))
        for name in ("tr_at_1", "ir_at_1")
    }
    captions: dict[str, Any] = {
        lm: {
            "cider": metrics.value(f"captions-{lm}", "cider"),
            "shuffled_cider": metrics.value(f"captions-{lm}-shuffled", "cider"),
        }
        for lm in LANGUAGE_MODELS
    }
    captions["nocaps"] = {short: metrics.value("nocaps", "cider", domain) for short, domain in DOMAINS.items()}
    return {
        "retrieval": {**retrieval, "chance_at_1": round(100 / gallery, 2), "gallery": gallery},
        "vqa": {
            lm: {
                "accuracy": metrics.value(f"vqa-{lm}", "accuracy", protocol="vqa/official-2021"),
                "blind": metrics.value(f"vqa-{lm}-blind", "accuracy", protocol="vqa/official-2021"),
            }
            for lm in LANGUAGE_MODELS
        },
        "captions": captions,
        "fine_tuned": _fine_tuned_scores(metrics),
        "capfilt": {
            f"true_{when}": round(
                true_share(
                    (tar for name in WEB_SOURCES for tar in sorted((folder / place / name).rglob("*.tar"))), scenes
                ),
                2,
            )
            for when, place in (("before", "raw"), ("after", "captioned"))
        },
        "download": _download(folder),
        "seconds": {name: cost["seconds"] for name, cost in costs.items()},
        "peak_rss_mb": max(cost["peak_rss_mb"] for cost in costs.values()),
        "seed": seed,
    }


def _fine_tuned_scores(metrics: Metrics) -> dict[str, float]:
    return {
        "tr_at_1": metrics.value("finetune_retrieval", "tr_at_1", protocol="/itm+itc"),
        "ir_at_1": metrics.value("finetune_retrieval", "ir_at_1", protocol="/itm+itc"),
        "cider": metrics.value("finetune_caption", "cider"),
        "vqa": metrics.value("finetune_vqa", "accuracy", protocol="vqa/official-2021"),
    }


def as_table(summary: dict[str, Any]) -> str:
    """The summary for a terminal: each number beside its baseline."""
    retrieval, rows = summary["retrieval"], [("", "score", "baseline")]
    chance = f"{retrieval['chance_at_1']} chance"
    for name, title in (("tr_at_1", "text retrieval R@1"), ("ir_at_1", "image retrieval R@1")):
        rows.append((f"{title}, ITC", f"{retrieval[f'{name}_itc_only']}", chance))
        rows.append((f"{title}, ITM rerank", f"{retrieval[name]}", f"{retrieval[f'{name}_itc_only']} ITC"))
    for lm in LANGUAGE_MODELS:
        vqa, captions = summary["vqa"][lm], summary["captions"][lm]
        rows.append((f"zero-shot VQA accuracy, {lm.upper()}", f"{vqa['accuracy']}", f"{vqa['blind']} blind"))
        rows.append((f"caption CIDEr, {lm.upper()}", f"{captions['cider']}", f"{captions['shuffled_cider']} shuffled"))
    for short, domain in DOMAINS.items():
        rows.append((f"NoCaps CIDEr, {domain}", f"{summary['captions']['nocaps'][short]}", ""))
    rows += _fine_tuned(summary)
    capfilt, download = summary["capfilt"], summary["download"]
    rows.append(("true web captions, percent", f"{capfilt['true_after']}", f"{capfilt['true_before']} before CapFilt"))
    rows.append(("web images kept", f"{download['kept']}", f"{download['rows']} rows"))
    rows.append(("peak memory, MiB", f"{summary['peak_rss_mb']}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}".rstrip() for a, b, c in rows)


def _fine_tuned(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    tuned, before = summary["fine_tuned"], summary["retrieval"]
    return [
        ("text retrieval R@1, fine-tuned", f"{tuned['tr_at_1']}", f"{before['tr_at_1']} before"),
        ("image retrieval R@1, fine-tuned", f"{tuned['ir_at_1']}", f"{before['ir_at_1']} before"),
        ("caption CIDEr, T5 fine-tuned", f"{tuned['cider']}", f"{summary['captions']['t5']['cider']} zero-shot"),
        ("VQA accuracy, T5 fine-tuned", f"{tuned['vqa']}", f"{summary['vqa']['t5']['accuracy']} zero-shot"),
    ]


def write_summary(folder: Path, seed: int) -> Path:
    """Write `summary.json` from the files of a demo folder; returns its path."""
    costs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "steps").glob("*.json")}
    path = folder / "summary.json"
    replace_file(path, json.dumps(collect(folder, seed, costs), indent=1) + "\n")
    return path


def main() -> int:
    parser = Parser(prog="python -m data_prep.miniature.summary", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a demo whose evaluations are scored")
    parser.add_argument("--seed", type=int, required=True, help="the seed of that demo")
    arguments = parser.parse_args()
    try:
        print(write_summary(arguments.folder, arguments.seed))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
