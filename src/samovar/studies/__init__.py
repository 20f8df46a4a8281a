"""Studies of many runs: the demo, `tune`, `compare` and `reproduce`.

The four do not import each other. What they share lies beside them: `jobs` (a run and its
measurements), `running` (do jobs, several at a time, and resume), `estimate` (their time),
`columns` (numbers of a run), `claims` and `intervals` (tests over seeds), `terminal` (plans,
progress, tables)."""
