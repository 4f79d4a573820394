"""Diffusion: IDDPM, rectified flow, samplers and mask strategies. Knows torch only."""
