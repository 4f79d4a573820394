"""brickreel: from a folder of films to a fine-tuned text-to-video model."""

__version__ = "0.1.0"
