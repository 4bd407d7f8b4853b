"""Training of EDM: supervision from depth and poses, losses, trainer; inference imports none."""
