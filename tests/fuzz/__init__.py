"""Fuzzing: files and settings are damaged at random, and the program must refuse them in one line, or be right.

Run it with `make fuzz MINUTES=5`, or `python -m tests.fuzz --minutes 5 --seed 7 --only packed_file`. Nothing of it is in
`make test` but a few cases of each target with a fixed seed.

To add a target, add ONE file, `tests/fuzz/targets/NAME.py`; it is found by its name. It has:

- a docstring, whose first line says what is damaged and what must hold;
- `prepare(folder: Path) -> Case`: makes what all cases share, in an empty folder of its own, and returns the case;
- the case, `case(draw: random.Random) -> None`: damages something at random and gives it to the program. It takes all its
  chance from `draw`, so that a case is found again by its seed, and leaves nothing behind that changes the next case;
- optionally `LIMIT = 20.0`: seconds that one case may take, 10 if nothing is said. A longer one is a hang.

What a case does says what came of it:

- it returns: what was damaged was **accepted**. The case must have asserted that what the program made of it is right;
- it raises `ShoestringError` (or `UsageError`) of one line: it was **refused**. `expect.command([...])` runs the command
  line in the process and raises that of its message;
- anything else is **bad**: another exception, a message of several lines, a failed assertion, a hang, a crash, or more
  memory than `explore.MEMORY`.

`mutations.py` has what damages bytes, JSON and TOML. Every bad case is printed with the command that does it again.
"""
