"""STDiT2: the model, its weights and their conversion."""

from brickreel.models.stdit2.model import STDiT2

__all__ = ["STDiT2"]
