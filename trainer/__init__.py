"""Two towers, trained and exported: datasets, features, losses, evaluation, tower bundles."""
