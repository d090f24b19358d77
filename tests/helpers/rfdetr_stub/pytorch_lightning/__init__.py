"""What the trainer asks of Lightning."""
