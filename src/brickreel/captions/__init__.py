"""Captions: who asks, what is asked, what it may cost, and what counts as a caption."""
