"""Models: STDiT2, the autoencoder, the text encoder and the pipeline. Knows torch, diffusers and transformers only."""

import logging
import sys

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # complains of kernels that nothing here uses
# diffusers warns of modules that must stay in fp32 even where its list of them is empty.
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "float32: []" not in record.getMessage())

if sys.modules.get("bitsandbytes", sys) is None:  # see brickreel.running
    import diffusers.models.modeling_utils  # noqa: F401

    del sys.modules["bitsandbytes"]
