-- One partition past retention, or old keys when there is none. $1 now. Locks what it drops. Again until it drops none; harmless at any time.
select (u ->> 'dropped')::int4 as dropped, coalesce((u ->> 'keys')::int4, 0) as keys from sundown.upkeep($1) u
