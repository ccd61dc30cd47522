"""Turns a CLIP ViT into a folder of another form: open_clip's, Hugging Face's, or the published PLIP's.

SOURCE is a Hugging Face folder, the published `plip` folder, the folder that `pallava pretrain` wrote, or an open_clip
checkpoint (with --model). The published form holds the vision tower alone; a vision tower without its text tower
becomes an open_clip state dict of the `visual.` keys.

Example:
  pallava encoder convert plip plip-hf --to huggingface
  pallava encoder convert epoch_32.pt plip-published --to published --model ViT-B-16-quickgelu
"""

import argparse

FORMS = ("open_clip", "huggingface", "published")  # as in model.clip_conversion, which takes seconds to import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", help="a folder or an open_clip checkpoint")
    parser.add_argument("out", help="folder to write; must not exist")
    parser.add_argument("--to", required=True, choices=FORMS, help="the form to write")
    parser.add_argument(
        "--model", default="", help="of an open_clip checkpoint: open_clip's name, or a JSON description"
    )


def run(options: argparse.Namespace) -> int:
    """Converts."""
    from pallava.model.clip_files import convert_encoder

    print(f"wrote {convert_encoder(options.source, options.out, options.to, options.model)}")
    return 0
