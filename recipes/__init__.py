"""Recipes: YAML and scripts to copy and edit. In a wheel this folder is the package ``s3prl_ekd.recipes``."""
