"""What ``s3prl-ekd distill`` adds to Lightning: adapters of Distiller and data, checkpoints, reports, stopping."""
