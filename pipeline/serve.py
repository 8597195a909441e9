"""`python -m pipeline.serve --weights W`: a page to try a trained model on, in a browser.

Weights of stage 2 write captions and answer questions, those of stage 1 score texts; both show what their queries look
at. The page comes from this machine alone, asks nothing of others, and keeps nothing. Ctrl-C ends it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, printable
from pipeline.inputs import add_weights, load_weights

if TYPE_CHECKING:
    from pipeline.trained_model import Model

PORT = 7860
CLOSING_S = 10.0  # for the work that is being done when the server ends


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def page_of(model: "Model", weights: Path) -> str:
    """The page with the sections that the model has."""
    from pipeline.pages.page import render
    from pipeline.prompts import CHAT_TURNS, caption_prompt
    from pipeline.serving import http_server, tasks

    bounds = {
        "bytes": http_server.MAX_PICTURE_BYTES,
        "pictures": tasks.MAX_PICTURES,
        "texts": tasks.MAX_TEXTS,
        "length": tasks.MAX_TEXT_LENGTH,
        "turns": CHAT_TURNS,
        "conversation": tasks.MAX_CONVERSATION_LENGTH,
    }
    return render(
        Path(tasks.__file__).parent,
        "serve.html",
        title="Try BLIP-2",
        weights=printable(str(weights)),
        stage=model.stage,
        reads_questions=model.recipe.qformer.question != "none",
        prompt=caption_prompt(model.recipe),
        bounds=bounds,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.serve", description=__doc__)
    add_weights(parser, "1 or 2")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=_port, default=PORT, metavar="N", help=f"0: any free one; default: {PORT}")
    options = parser.parse_args(arguments)

    def work() -> None:
        from pipeline.serving.http_server import PageServer

        with PageServer(options.host, options.port) as server:
            model = load_weights(options, None)
            from pipeline.serving.tasks import Tasks

            tasks = Tasks(model)
            server.open(page_of(model, options.weights), tasks.by_path())
            if not server.is_loopback:
                print(f"warning: --host {options.host}: whoever reaches this machine can use the model, without a "
                      "password and unencrypted", file=sys.stderr)  # fmt: skip
            print(f"{server.url} is ready; Ctrl-C ends it", flush=True)
            try:
                server.serve_forever()
            finally:
                tasks.computing.close(CLOSING_S)

    return finish(work, after_stop="")


if __name__ == "__main__":
    sys.exit(main())
