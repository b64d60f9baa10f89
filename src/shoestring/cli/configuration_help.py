"""The part of --help that tells how configuration is given."""

KEYS = """\
Any key of a recipe can be given as a flag: --budget 2m, --seed 1, --memory 4GiB, --optim muon --optim.lr 0.02,
--model.width 256, --data.corpus FOLDER, --train.batch 32, --execution.precision float32.
A budget is an amount of seconds (90s, 2m, 8h), FLOPs (1e15flops) or tokens (20Mtok), or several: 2m,20Mtok.
`shoestring plan --toml` prints a complete recipe, every key explained; `shoestring methods` lists what can be chosen by
name, and `shoestring methods NAME` the options of one.
"""
