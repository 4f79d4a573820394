"""Films: probing, decoding, shots, cadence, signals, cutting, and the demo films."""
