"""Search: `hydra/sweeper=optuna`, on Optuna's ask and tell."""
