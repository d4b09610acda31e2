"""Runs the same load against this broker and others, alternating; `just compare` is how to call it.

    __main__    the command line and the order of things
    cells       which loads
    brokers     how each broker is installed, set up, started and ended
    measure     runs every cell on every broker and keeps each result
    summary     medians and faults of the runs
    report      Markdown tables, also those in README.md and docs/comparison.md
    chart       an SVG by matplotlib, in an environment of its own
    machine     what it was measured on

Needs nothing but Python's standard library, the chart apart. What it writes goes to
`target/compare`: `result.json` holds every single run, everything else is made from that file.
"""
