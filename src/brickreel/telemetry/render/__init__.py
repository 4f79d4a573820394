"""Rendering: the page, its charts, and the summary for the terminal. Knows only the summary."""
