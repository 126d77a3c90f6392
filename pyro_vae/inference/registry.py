r"""Every inference algorithm by its short name."""

from __future__ import annotations

from pyro_vae.errors import InputError, near_match
from pyro_vae.inference.aevb import AEVB
from pyro_vae.inference.analytic_kl import AnalyticKL
from pyro_vae.inference.autoencoder import Autoencoder
from pyro_vae.inference.beta_vae import BetaVAE
from pyro_vae.inference.ciwae import CIWAE
from pyro_vae.inference.dreg import DReG
from pyro_vae.inference.enumeration import Enumeration
from pyro_vae.inference.free_bits import FreeBits
from pyro_vae.inference.interface import Inference
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

_ALL: tuple[type[Inference], ...] = (
    *(AEVB, AnalyticKL, STL, ScoreFunction, Enumeration),
    *(IWAE, DReG, Renyi, MIWAE, PIWAE, CIWAE),
    *(WakeSleep, RWS, MCEM),
    *(BetaVAE, FreeBits, MMD, Autoencoder, VB, M2),
)
ALGORITHMS: dict[str, type[Inference]] = {algorithm.name: algorithm for algorithm in _ALL}


def algorithm(name: str) -> type[Inference]:
    """Returns the algorithm with a short name.

    Arguments:
        name: Such as ``"aevb"``.

    Raises:
        InputError: For an unknown name, with the nearest known one.

    Example:
        >>> algorithm("wake-sleep").__name__
        'WakeSleep'
    """
    if name not in ALGORITHMS:
        raise InputError(f"unknown inference algorithm `{name}`; {near_match(name, ALGORITHMS)}")
    return ALGORITHMS[name]
