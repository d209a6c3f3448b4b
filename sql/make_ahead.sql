-- Partitions ahead, whatever becomes of those that are past retention. $1 now. Returns how many were made; harmless at any time.
select sundown.make_ahead($1) as made
