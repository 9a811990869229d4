"""Public projects that use Tornado's streams and servers, run on Tornado and on ours, and compared check by check.

The command is ``python -m tests.dropin [--write-docs] [project[:run] ...]``; ``make dropin`` runs all of it.

- `projects` lists the projects: which suite of theirs runs, and which programs of ours in `uses`;
- `venvs` installs each from PyPI, in the versions of `requirements`, into a venv in ``.dropin/``;
- `running` runs a program on one of the two sides, in a bounded time, with nothing but a loopback interface;
- `witness` sees in each process which classes are made: it counts only if Tornado's were on its side, and ours on ours;
- `judging` compares: what passes on Tornado must pass on ours, but for what `expectations` lists with a reason;
- `keeping` keeps what came of each run, so that all of it need not run at once;
- `table` is what the docs show.

How fast they are on either side is another command's: ``python -m tests.dropin.measure``, or ``make dropin-figures``.

- `loads` lists what is measured, by the programs `measured_*` in `uses`;
- `turns` runs one of them on one side, its server and its load on a core each;
- `figures` has the medians and ratios, and their table.
"""
