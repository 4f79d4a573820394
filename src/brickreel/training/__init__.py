"""Training: data order, buckets, the loop, parallel backends, checkpoints, EMA and the held-out gauge."""
