"""Speech for training and judging: recordings, distortions and the synthetic mini corpus."""
