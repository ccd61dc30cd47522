"""Facts on its weights that open_clip records and does not act on."""


def made_with_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Return whether weights were made with quick-GELU; open_clip only warns when it loads them into a model with GELU.

    Args:
        model: open_clip's name of the model, such as ``ViT-B-16``.
        pretrained: Its tag of the weights, such as ``openai``; nothing is recorded for files.
    """
    import open_clip  # takes seconds

    return bool(open_clip.get_pretrained_cfg(model, pretrained or "").get("quick_gelu"))
