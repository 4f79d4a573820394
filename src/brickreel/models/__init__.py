"""Models: STDiT2, the autoencoder, the text encoder and the pipeline. Knows torch, diffusers and transformers only."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # complains of kernels that nothing here uses
# diffusers warns of modules that must stay in fp32 even where its list of them is empty.
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "float32: []" not in record.getMessage())
