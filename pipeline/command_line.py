"""How the commands of this room speak of a fault: wrong usage is one line and exit 2, a failure one line and exit 1."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser that answers wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def one_line(error: Exception) -> str:
    """The error's message in one line; of one that a data loader's worker met, the original message."""
    message = str(error).strip()
    if message.startswith("Caught "):  # torch's wrapping: a traceback, whose last line is `module.Class: message`
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split()) or type(error).__name__
