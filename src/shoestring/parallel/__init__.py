"""One model on several devices: layouts, sharded weights, and optimisers whose state is divided among the processes.

    layout = ParallelLayout(fsdp=2, tensor=2)
    sharded = shard(model, layout)                                   # in each process of a torch process group
    optimizer = partition_over(sharded, claimed)                     # claimed = partition(model, ...), made before `shard`

The engines are torch's: `fully_shard`, DTensor and its parallel styles, `torch.utils.checkpoint`, and the collectives.
"""
