"""What runs a method: launch, loop, evaluation, record, checkpoints. Methods never import this."""
