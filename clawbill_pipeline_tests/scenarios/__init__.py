"""Whole stories, played by the real commands in processes of their own."""
