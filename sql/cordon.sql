-- Keeps new agents off a host, or lets them on again. $1 host, $2 whether to keep them off. Locks its slot. No row: no such host.
update sundown.host_slot s set cordoned = $2 where s.host = $1 returning s.host
