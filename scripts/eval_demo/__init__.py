"""What the demo's base is worth, and what a fine-tune makes of it: runs, scores and tables.

With `scripts` on Python's path: `python -m eval_demo freeze`, `run`, `score`, `table`.

Imports go down this list:

    __main__
    tables, pictures      what is shown
    results               what the runs and their scores say
    scores → hearing      what recognisers and models say of the speech; needs the extra `eval`
    runs → recipes        trains and speaks; needs the product alone
    settings              config.json, frozen
    words, pitch, intervals
"""
