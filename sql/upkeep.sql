-- Partitions ahead, partitions past retention, old keys. $1 now. Returns counts as JSON; harmless at any time.
select sundown.upkeep($1)::text as counts
