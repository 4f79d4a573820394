"""Telemetry: gathering (gpu, infiniband, host), arithmetic (summary, findings) and rendering, apart. Knows no model."""
