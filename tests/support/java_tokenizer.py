"""pycocoevalcap's Java tokenizer, run as pycocoevalcap runs it (its temporary file aside)."""

import subprocess
import tempfile
from pathlib import Path

import pycocoevalcap
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR


def java_tokenize(captions: list[str]) -> list[str]:
    """Each caption's tokens joined by spaces, punctuation dropped; empty strings for lines that Java leaves out."""
    jar = Path(next(iter(pycocoevalcap.__path__))) / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "captions.txt"
        text.write_bytes("\n".join(caption.replace("\n", " ") for caption in captions).encode())
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, str(text)], capture_output=True, check=True, timeout=120)
    lines = done.stdout.decode().split("\n")[: len(captions)]
    lines += [""] * (len(captions) - len(lines))
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in lines]
