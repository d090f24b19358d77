"""Where the package asks for its trainer."""


class Trainer:
    def __init__(self, callbacks):
        self.callbacks, self.current_epoch, self.callback_metrics = list(callbacks), 0, {}


def build_trainer(*callbacks):
    return Trainer(callbacks)
