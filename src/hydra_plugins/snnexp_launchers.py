"""Where Hydra looks for plugins: the launchers of conf/hydra/launcher/. They live in snnexp.launchers."""

from snnexp.launchers import joblib, slurm


class SlurmLauncher(slurm.SlurmLauncher):
    """hydra/launcher=slurm"""


class JoblibLauncher(joblib.JoblibLauncher):
    """hydra/launcher=joblib"""
