"""Training of UniGS: `python -m training.train_joint --config training/configs/tiny.toml`."""
