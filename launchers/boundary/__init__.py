"""`hydra/sweeper=boundary`: where training ends and collapse begins, from few runs."""
