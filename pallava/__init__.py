"""PA-LLaVA: a language-vision assistant for human pathology images, as a plugin of xtuner."""

__version__ = "0.1.0"
