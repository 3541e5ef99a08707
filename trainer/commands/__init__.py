"""The commands of the trainer, a module each; they import what they need when they run."""
