"""Training of EDM: data sets, ground truth, losses and the training loop."""
