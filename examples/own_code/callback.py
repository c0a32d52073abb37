"""A callback of your own: watches how much the first layer's weights move, and stops when they rest.

snnexp "trainer.callbacks=[callback.py:Rest]"
"""


class Rest:
    """Any of on_start, on_epoch and on_end; with state_dict and load_state_dict its state survives a break."""

    def __init__(self):
        self.before = None

    def on_epoch(self, context):
        """After each epoch: context has epoch, max_epochs, network, optimizer, metrics, folder; stop=True ends here."""
        weight = next(context.network.parameters()).detach().clone()
        if self.before is not None:
            moved = float((weight - self.before).norm() / self.before.norm())
            context.metrics["mine/moved"] = moved  # is logged like any other metric
            context.stop = moved < 1e-5
        self.before = weight

    def state_dict(self):
        """What to keep: tensors, numbers, strings, lists and dictionaries of them."""
        return {"before": self.before}

    def load_state_dict(self, state):
        """Take it up again."""
        self.before = state["before"]
