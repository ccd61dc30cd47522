"""What open_clip knows of its weights and does not act on."""


def made_with_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether weights were made with quick-GELU; loading them into a model that has GELU, open_clip only warns.

    Args:
        model: open_clip's name of the model, such as ``ViT-B-16``.
        pretrained: Its tag of the weights, such as ``openai``; of files and of no weights nothing is known.
    """
    import open_clip  # takes seconds

    return bool(open_clip.get_pretrained_cfg(model, pretrained or "").get("quick_gelu"))
