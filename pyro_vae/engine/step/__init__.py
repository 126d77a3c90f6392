"""Loss, gradients and the optimizer's update as one program, for one VAE or for R of them."""
