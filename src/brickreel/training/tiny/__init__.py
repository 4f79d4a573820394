"""How the small base model that brickreel ships was made: `python -m brickreel.training.tiny`.

An autoencoder learns from stills of shapes and of bricks, as a general one would have seen both; the transformer and
its text encoder learn from smooth moving shapes only and have never seen a brick.
"""
