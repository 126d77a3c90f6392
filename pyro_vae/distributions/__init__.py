"""Families that Pyro lacks, and what a family tells of itself: parameters, supports, KL divergences, moments."""
