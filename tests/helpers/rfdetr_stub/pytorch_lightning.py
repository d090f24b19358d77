"""What the trainer asks of Lightning."""


class Callback:
    pass
