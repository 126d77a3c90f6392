"""The declaration of a VAE: `Conditional` and what is made of several, the VAE itself, the checks at construction."""
