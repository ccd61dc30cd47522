"""Draw what a model looks at in an image: overview, tiles, and which of them the connector's attention read.

With --text also where on the image the text is true, patch by patch; several texts are shown by what tells each from
the others. That takes a whole CLIP: MODEL itself, or the one that the model's encoder is part of, found where `pallava
convert` took the encoder from or as plip beside MODEL, or --clip. Attention tells where the model read, not why it
answers as it does. For research only, not for diagnosis.

Example:
  pallava look pa-llava --image slide.png --text "an H&E image of necrosis" --text "an H&E image of stroma"
  pallava look pa-llava --image slide.png --text "necrosis" --clip plip
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="folder that `pallava convert` wrote, or a whole CLIP")
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--text", action="append", default=[], help="text to find; needs a CLIP (repeatable)")
    parser.add_argument("--clip", help="whole CLIP, such as `pallava pretrain` writes (default: the encoder's own)")
    parser.add_argument("--model-name", default="", help="open_clip's name of the model of an open_clip checkpoint")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="permission to import the module of a connector that does not come with pallava (default: refuse)",
    )
    parser.add_argument("--out", type=Path, default=Path("look.png"), help="picture to write (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Draw."""
    from pallava.evaluation.encoders.look import look

    clip = look(
        options.model,
        options.image,
        options.out,
        texts=options.text,
        clip=options.clip,
        model_name=options.model_name,
        trust_remote_code=options.trust_remote_code,
    )
    if options.text and clip is None:
        print(
            f"note: '{options.model}' has no text tower, and no whole CLIP was found where its encoder came from, so "
            "the picture does not show the texts; give a CLIP, such as --clip plip",
            file=sys.stderr,
        )
    elif clip not in (None, options.clip, options.model):
        print(f"texts are compared by the CLIP in {clip}")
    print(f"wrote {options.out}")
    return 0
