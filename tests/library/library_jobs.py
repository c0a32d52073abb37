"""The run that the tests of the library share."""

JOB = (
    "device=cpu",
    "neuron.engine=reference",  # nothing to compile
    "dataset=digits",
    "dataset.num_steps=4",
    "dataset.limit_train=64",
    "dataset.limit_val=32",
    "dataset.limit_test=32",
    "model.spec=c4k3-SN-AP2-FC-SN",
    "trainer.max_epochs=1",
    "trainer.plots=false",
)
