"""What runs a method: launch, training loop, evaluation, record, checkpoints. Methods never import this."""
