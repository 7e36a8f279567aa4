"""How a run saves, reports and seeds; the keys that `drivestack train` reads beside model, data and optimiser."""

seed = 0
checkpoint = dict(interval=1000, keep=2)  # iterations between checkpoints; how many are kept
log_interval = 50
gradient_log_interval = None  # iterations between records of the tasks' gradients at the shared map (docs/sharing.md)
ema = None  # dict(momentum=0.0002): average the weights, publish the average
sync_bn = True  # BatchNorm statistics over all GPUs
find_unused_parameters = False  # several processes: True where a part of the model may get no gradient
sharding = None  # several processes share memory: "zero1" (optimiser state), "fsdp2" (weights and gradients too)
activation_checkpointing = None  # names of modules to recompute in the backward pass, such as ["img_neck"]
validation = None  # dict(interval=1000, metric="NDS", mode="max"): scores on the way, the best kept as best.pth
tensorboard = False  # also write event files for `tensorboard --logdir runs` (pip install tensorboard)
cache_features = (
    None  # a folder: where all below the heads is frozen, its features are computed once (docs/speedrun.md)
)
new_parts = ()  # prefixes of parameter names that a --load-from file may lack: they start at random
