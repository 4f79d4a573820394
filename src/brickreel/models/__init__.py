"""Models: STDiT2, the autoencoder, the text encoder and the pipeline. Knows torch, diffusers and transformers only."""
