"""`python -m pipeline.generate --weights W --image FILE...`: write text from pictures, one JSON line a picture."""

import json
import sys
from pathlib import Path

from pipeline.command_line import Parser, finish, positive
from pipeline.files import check_target, replace_file


def generate(weights: Path, images: list[Path], prompt: str, num_beams: int, max_new_tokens: int) -> list[str]:
    """One text for each picture. Raises ValueError in one line for weights or pictures that cannot be used."""
    import torch

    from pipeline.data.transforms import load_evaluation_pixels
    from pipeline.distributed import process_group
    from pipeline.models.inference import LanguageModel
    from pipeline.models.language import Decoding
    from pipeline.weights.native import load_model

    model = load_model(weights, process_group.device_name())
    if not isinstance(model, LanguageModel):
        raise ValueError(f"--weights {weights}: is a stage-1 run, which writes no text; give a stage-2 run")
    pixels = torch.stack([load_evaluation_pixels(image, model.image_size_px) for image in images])
    return model.generate(pixels, [prompt] * len(images), Decoding(num_beams, max_new_tokens))


def main() -> int:
    parser = Parser(prog="python -m pipeline.generate", description=__doc__)
    what = parser.add_argument_group("what to read and write")
    what.add_argument("--weights", type=Path, required=True, help="a stage-2 run folder or checkpoint")
    what.add_argument("--image", type=Path, nargs="+", required=True, metavar="FILE", help="the pictures")
    what.add_argument("--output", type=Path, metavar="FILE", help="write the lines to this file; default: print them")
    text = parser.add_argument_group("the text")
    text.add_argument("--prompt", default="a photo of", help="the beginning of the text; default: a photo of")
    text.add_argument("--num-beams", type=positive, default=5, metavar="N", help="beams of the search; default: 5")
    text.add_argument("--max-new-tokens", type=positive, default=30, metavar="N", help="longest text; default: 30")
    options = parser.parse_args()

    def work() -> None:
        if options.output:
            check_target(options.output)
        texts = generate(options.weights, options.image, options.prompt, options.num_beams, options.max_new_tokens)
        pairs = zip(options.image, texts, strict=True)
        lines = "".join(json.dumps({"image": str(image), "text": text}) + "\n" for image, text in pairs)
        if options.output:
            replace_file(options.output, lines)
            print(options.output)
        else:
            print(lines, end="")

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
