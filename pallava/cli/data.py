"""The commands on files of data: `data unpack`, `data prepare` and `data check`."""

from pathlib import Path
from typing import Annotated

from pallava.cli.options import Workers
from pallava.errors import PallavaError, check_at_least
from pallava.io.archives import MAX_GB, unpack
from pallava.io.processes import default_num_workers

_NUM_WORKERS = default_num_workers()
_TOKENIZER = "name or folder of the tokenizer: the config's llm_name_or_path"
_Template = Annotated[str, "name of the chat template"]
_ContextLength = Annotated[int, "maximum number of tokens in a row"]
_NumVisualTokens = Annotated[int, "maximum number of tokens per image"]


def run_data_unpack(
    archive: Annotated[list[str], "zip, tar or tar.gz file; its content decides which"],
    out: Annotated[str, "folder to make; it must not exist"],
    flat: Annotated[bool, "leave out the folders in the archives"] = False,
    max_gb: Annotated[float, "maximum unpacked size in GB"] = MAX_GB,
) -> None:
    """Unpack downloaded zip, tar or tar.gz files into one new folder, or refuse them as a whole."""
    if not max_gb > 0:
        raise PallavaError(f"--max-gb must be above 0, got {max_gb:g}")
    unpacked = unpack(archive, out, max_gb=max_gb, is_flat=flat)
    print(f"{out}: {unpacked.num_files} files, {unpacked.num_bytes / 1e9:.2f} GB")


def run_data_prepare(
    data: Annotated[str, "JSONL or JSON training file, or a folder of such files"],
    out: Annotated[str, "output folder; must not exist"],
    *,
    tokenizer: Annotated[str, _TOKENIZER],
    prompt_template: _Template = "llama3_chat",
    context_length: _ContextLength = 2048,
    num_visual_tokens: _NumVisualTokens = 196,
    workers: Annotated[int, "number of processes"] = 1,
) -> None:
    """Tokenize training files ahead of training into a folder that a config's data_path can name."""
    if Path(out).exists():
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    from pallava.data.tokenize import prepare
    from pallava.data.training_row import EncodingSettings
    from pallava.model.loading import load_tokenizer

    check_at_least(1, workers=workers)
    loaded = load_tokenizer(tokenizer)
    settings = EncodingSettings.make(loaded, prompt_template, context_length, num_visual_tokens)
    prepared = prepare(data, loaded, settings, num_workers=workers, out=out)
    print(f"{Path(out)}: {prepared.describe()}")


def run_data_check(
    path: Annotated[str, "JSONL or JSON list of {id, image, conversations}", {"metavar": "file"}],
    *,
    image_folder: Annotated[str, "folder that image names are relative to"],
    decode_images: Annotated[bool, "decode every image, not only its header", "--decode"] = False,
    tokenizer: Annotated[str | None, f"{_TOKENIZER}; counts the tokens of each row"] = None,
    prompt_template: _Template = "llama3_chat",
    context_length: _ContextLength = 2048,
    num_visual_tokens: _NumVisualTokens = 196,
    num_workers: Workers = _NUM_WORKERS,
) -> int:
    """Check a training file before training: images, markers, turns, answers, ids and, with a tokenizer, the length."""
    from pallava.data.check import check_training_file

    check_at_least(1, workers=num_workers, context_length=context_length, num_visual_tokens=num_visual_tokens)
    report = check_training_file(
        path,
        image_folder,
        decode_images=decode_images,
        tokenizer=tokenizer,
        prompt_template=prompt_template,
        context_length=context_length,
        num_visual_tokens=num_visual_tokens,
        num_workers=num_workers,
    )
    print(f"{report.num_faulty} of {report.num_rows} rows of {path} are at fault")
    for reason, count in report.faults.items():
        is_skipped = reason == "over_room" and not tokenizer
        print(f"  {reason:<18}{'not checked: give --tokenizer' if is_skipped else f'{count:>8}'}")
        for example in report.examples[reason]:
            print(f"    {example}")
    return int(report.num_faulty > 0)
