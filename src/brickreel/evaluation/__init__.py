"""Evaluation: metrics in pose time, contact sheets, comparison."""
