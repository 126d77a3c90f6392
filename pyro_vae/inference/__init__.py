"""Inference algorithms, one a file, behind one interface; `ALGORITHMS` maps their short names to classes."""

from pyro_vae.inference.aevb import AEVB
from pyro_vae.inference.algorithms import ALGORITHMS, algorithm
from pyro_vae.inference.analytic_kl import AnalyticKL
from pyro_vae.inference.autoencoder import Autoencoder
from pyro_vae.inference.beta_vae import BetaVAE
from pyro_vae.inference.ciwae import CIWAE
from pyro_vae.inference.dreg import DReG
from pyro_vae.inference.enumeration import Enumeration
from pyro_vae.inference.free_bits import FreeBits
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.inference.iwae import IWAE
from pyro_vae.inference.m2 import M2
from pyro_vae.inference.mcem import MCEM
from pyro_vae.inference.miwae import MIWAE
from pyro_vae.inference.mmd import MMD
from pyro_vae.inference.piwae import PIWAE
from pyro_vae.inference.renyi import Renyi
from pyro_vae.inference.rws import RWS
from pyro_vae.inference.score_function import ScoreFunction
from pyro_vae.inference.stl import STL
from pyro_vae.inference.vb import VB
from pyro_vae.inference.wake_sleep import WakeSleep

__all__ = [
    "AEVB",
    "ALGORITHMS",
    "CIWAE",
    "IWAE",
    "M2",
    "MCEM",
    "MIWAE",
    "MMD",
    "PIWAE",
    "RWS",
    "STL",
    "VB",
    "AnalyticKL",
    "Autoencoder",
    "BetaVAE",
    "DReG",
    "Enumeration",
    "FreeBits",
    "Inference",
    "Loss",
    "Phase",
    "Renyi",
    "ScoreFunction",
    "WakeSleep",
    "algorithm",
]
