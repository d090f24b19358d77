"""Where the package asks for its trainer."""


class Trainer:
    def __init__(self):
        self.callbacks, self.current_epoch, self.callback_metrics = [], 0, {}


def build_trainer(*settings):
    return Trainer()
