"""What model folders say, under whichever transformers this runs.

``python -m tests.smoke.folder_answers OUT THEIRS OURS NAMES FOLDER...`` writes it to a file, with what parts that this
transformers writes into THEIRS compute, and those in OURS. pallava stands alone here: what only training, data and
reports need cannot be imported.
"""

import sys
from pathlib import Path
from typing import Any

NOT_NEEDED = ("xtuner", "mmengine", "deepspeed", "datasets", "open_clip", "openai", "matplotlib", "imagehash", "gguf")


def ask(folder: Path) -> dict[str, Any]:
    """Inputs, logits and answers of one folder, by every way that users have."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer, pipeline

    import pallava.model  # noqa: F401
    from pallava.serving.session import Session

    image = Image.linear_gradient("L").resize((80, 50)).convert("RGB")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(["what is shown here ?", "nuclei ?"], images=[image, image.rotate(90, expand=True)])
    with torch.no_grad():
        fused = model.fuse(
            inputs["input_ids"],
            model.encode_images(inputs["pixel_values"], inputs["tiles_per_image"]),
            attention_mask=inputs["attention_mask"],
        )
        logits = model(**inputs).logits[fused["attention_mask"].bool()]
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "what is shown here ?"}]
    say = pipeline("image-text-to-text", model=model, processor=processor)
    said = say(text=[{"role": "user", "content": parts}], max_new_tokens=6, return_full_text=False)
    whole = model.generate(**inputs, max_new_tokens=6)
    alone = processor("what is shown here ?", images=image)
    streamed = model.generate(**alone, max_new_tokens=6, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    talk = Session(model, processor, image)
    return {
        "ids": inputs["input_ids"],
        "pixels": inputs["pixel_values"],
        "logits": logits,
        "answers": processor.batch_decode(whole[:, inputs["input_ids"].shape[1] :]),
        "pipeline": said[0]["generated_text"],
        "conversation": [talk.ask(question, max_new_tokens=6) for question in ("what is shown here ?", "nuclei ?")],
        "streamed": processor.batch_decode(streamed[:, alone["input_ids"].shape[1] :])[0],
        "chat template": processor.chat_template,
    }


def describe() -> dict[str, Any]:
    """What `pallava.model.versions` tells apart, as this transformers has it."""
    import transformers
    from transformers import CLIPVisionConfig, CLIPVisionModel, GenerationConfig
    from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "version": transformers.__version__,
        "tower inside": hasattr(CLIPVisionModel(CLIPVisionConfig(**sizes)), "vision_model"),
        "open settings": GenerationConfig().do_sample is None,
        "needs class names": not hasattr(transformers.ProcessorMixin, "get_attributes"),
        "caps by sdpa": Gemma2PreTrainedModel._supports_sdpa,  # it cannot; newer ones say so
    }


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(NOT_NEEDED))
    import torch

    from tests.smoke import part_answers

    out, theirs, ours, names, *folders = sys.argv[1:]
    part_answers.write(Path(theirs), names.split(","))
    parts = {f"parts {kind}": part_answers.read(Path(each)) for kind, each in (("theirs", theirs), ("ours", ours))}
    torch.save({"about": describe(), **parts, **{folder: ask(Path(folder)) for folder in folders}}, out)
