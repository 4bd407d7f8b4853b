"""Renders batches of scenes by ray casting: antialiased grey images and exact depth."""
