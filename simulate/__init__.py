"""The simulator: the real handlers and the real core, through more faults than production will see in years.

`python -m simulate --histories N` runs N seeded histories of a shop's stream: events come through `collect`
into a simulated log, an event-source mapping hands them to `functions.update`, which writes a simulated
table. Meanwhile the table throttles, answers get lost, environments die, shards split, models are rolled out.
When all has settled, every row must be what one replay of the log makes (`reference.py`, which shares no code
with what is tested), bit for bit.
"""
