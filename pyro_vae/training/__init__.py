"""The training of one VAE or of R of them: `fit`, its loop, its options and its checkpoints."""
